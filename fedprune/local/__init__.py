"""The local training step (a LightningModule) and the lean loop that runs it on a client."""
