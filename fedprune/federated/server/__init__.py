"""The server's part of a round: aggregates, and the optimizer that makes a step of what they return."""
