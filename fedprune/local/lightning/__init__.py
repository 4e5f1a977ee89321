"""Stand-ins for parts of a pl.Trainer: what `self.trainer`, `self.log` and schedules are while a client trains."""
