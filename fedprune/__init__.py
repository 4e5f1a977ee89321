"""fedprune: which pruning recipe survives federated training? A method is a point on seven axes (see docs/concepts/axes.md)."""

__version__ = "0.1.0"
