"""A federation of real devices: clients are SuperNodes of Flower, each with data of its own (docs/deployment.md).

The server's loop, the client's round and their messages are those of a simulation. This room replaces the executor: a task goes
to the node that is the task's client. Only flower.py imports Flower; everything else takes a `Post`, which sends and receives.
"""
