"""Networks that are physically as small as their masks: for export, and inside a client's training."""
