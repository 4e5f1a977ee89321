"""A client of the benchmark as a Flower ClientApp. A module of its own: Ray's workers import it once and keep what it holds."""

from __future__ import annotations

import functools

import given
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn import functional as F

app = ClientApp()


@functools.cache
def held(folder: str) -> tuple[given.Given, nn.Module]:
    """What a worker keeps from client to client: the data and a network."""
    torch.set_num_threads(1)
    data = given.read(folder)
    return data, data.net()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch of the client that the message names."""
    which = message.content["config"]
    data, net = held(which["folder"])
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=data.lr, momentum=data.momentum, fused=True)
    indices = data.indices(which["round"], which["place"])
    for start in range(0, len(indices), data.batch)[: data.limit]:
        batch = indices[start : start + data.batch]
        optimizer.zero_grad()
        F.cross_entropy(net(data.inputs[batch]), data.labels[batch]).backward()
        optimizer.step()
    answer = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": len(indices)})}
    return Message(RecordDict(answer), reply_to=message)
