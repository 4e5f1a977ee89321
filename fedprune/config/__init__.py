"""The configuration: its schema, and the objects that its nodes name by `_target_`."""
