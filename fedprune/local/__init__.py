"""Training on one client: the training step (a LightningModule), and the loops that run it."""
