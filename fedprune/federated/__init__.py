"""The federated loop, and everything that a server and its clients do in a round."""
