"""The compositions that a federation of real devices cannot have, each with what to choose instead.

What a client keeps lies on its device alone. So nothing can be had that needs the server to read it or to change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.errors import Incompatible


def refuse_what_cannot_be(made_of: Mapping[str, Any]) -> None:
    """Raise Incompatible, with all problems. made_of: what a worker is made from (experiment.client_round)."""
    config, options = made_of["config"], made_of["options"]
    federated = config["federated"]
    rules = {
        "data and partition are those of one machine: choose data=federation partition=federation, as python -m "
        "fedprune.deployment run does": "local" in config["data"] and "sizes" in config["partition"],
        "federated.batchnorm=local: the server reports the mean of what clients keep, which it cannot read: choose "
        "federated.batchnorm=average or frozen": federated["batchnorm"] != "local",
        "whose.uncommon=own: the server evaluates clients with weights that it cannot read: choose whose.uncommon=server": (
            options.whose.uncommon != "own"
        ),
        "criterion: its evidence is added up while clients train, and the server has it begin anew at each event: choose "
        "criterion=magnitude or criterion=snip": not made_of["accumulates"],
        "federated.control=scaffold: a server that prunes also changes the clients' controls: choose federated.control=none, "
        "or whose=personal": federated["control"] == "none" or not options.whose.global_mask,
        "federated/client sends bits or goes on alone: choose federated/client=trained_weights": (
            options.client.sends == "weights" and not options.client.goes_on_alone
        ),
        "federated/round is one without a server, to whom alone a node speaks: choose federated/round=star": (
            options.round.welcomes
        ),
        "local/module reports torchmetrics objects, whose states do not travel: report numbers by example": (
            not made_of["task"].templates
        ),
    }
    problems = [f"executor=flower cannot have this. {problem}" for problem, met in rules.items() if not met]
    if problems:
        raise Incompatible(*problems)
