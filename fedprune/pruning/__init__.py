"""Pruning as pure functions on dicts of tensors: the axes what, criterion, when, how_often and rewind, and the prune event."""
