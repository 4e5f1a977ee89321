"""One run, from its folder to its summary; a sweep of them; and who is told."""
