"""Pure functions on dicts of tensors: what, criterion, when, how_often, rewind, and the cycle that joins them."""
