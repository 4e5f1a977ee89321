"""What clients add to their training so that weights get ready to be pruned: penalties, dropout, noise."""
