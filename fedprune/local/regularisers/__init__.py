"""Penalties, dropout and noise in clients' training, which get weights ready to be pruned."""
