"""A ticket of a network of a user's own is told by its class, not by the option that it took the place of."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fedprune.run_id import AXES
from fedprune.ticket.read import Ticket
from fedprune.ticket.show import summary
from fedprune.ticket.start_from import misfits

CONFIGS = [
    (
        {"_target_": "my_net.TwoBranch", "width": 8},
        "my_net.TwoBranch (option lenet_300_100)",
        "model._target_=my_net.TwoBranch ",
    ),
    ({"_target_": "fedprune.models.mlp.lenet_300_100"}, "lenet_300_100", ""),
    (None, "lenet_300_100", ""),  # as in old tickets
]


@pytest.mark.parametrize(("config", "shown", "typed"), CONFIGS)
def test_the_class_is_shown_and_named_where_the_ticket_does_not_fit(config, shown, typed):
    axes = dict.fromkeys(AXES, "x") | {"model": "lenet_300_100", "data": "image_folder", "partition": "natural"}
    known = {"axes": json.dumps(axes), "name": "mine", "seed": "0", "id": "0", "fedprune": "0"}
    provenance = known | ({"network": json.dumps({"config": config})} if config else {})
    ticket = Ticket({"a.weight": torch.zeros(2, 2)}, {"a.weight": torch.ones(2, 2, dtype=torch.bool)}, provenance, Path("t"))
    written = io.StringIO()
    console = Console(width=200, file=written)
    console.print(summary(ticket))
    assert f"model {shown}" in written.getvalue()
    told = misfits(ticket, {"a.weight": torch.zeros(3)}, (), (), {"model": "mlp", "data": "table"})
    assert told[0].endswith(f"choose model=lenet_300_100 {typed}with images of the shape of data=image_folder")
