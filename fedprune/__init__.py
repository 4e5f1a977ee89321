"""fedprune: which pruning recipe survives federated training? A method is a point on six axes (see README.md)."""

__version__ = "0.1.0"
