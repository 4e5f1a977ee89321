"""Tables for a paper: the paired differences of every cell to a named one, and LaTeX with the rules of booktabs."""
