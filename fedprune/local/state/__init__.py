"""The state that a client keeps from one of its rounds to the next (types.ClientState), field by field."""
