"""The metrics of a round: sums over its exchanges, densities and operations."""
