"""What a LightningModule of a user's own may override, log and schedule, and the loop that calls it as Lightning does."""
