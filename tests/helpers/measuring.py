"""What the tests of evidence share: small networks, data, and a check that measuring leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fedprune.local.module import LocalModule
from fedprune.types import Mask, Params

SGD = partial(torch.optim.SGD, lr=0.1)


class Squares(LocalModule):
    """Half the squared distance between outputs and targets."""

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return (self.net(inputs) - targets).square().sum(1).mean() / 2


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def cnn() -> nn.Sequential:
    """Takes the 6 inputs as two channels of 1x3."""
    return nn.Sequential(
        nn.Unflatten(1, (2, 1, 3)), nn.Conv2d(2, 3, (1, 2), padding=(0, 1)), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )


def batchnorm_dropout() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 3))


def data(examples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(examples, 6, generator=generator), torch.randint(3, (examples,), generator=generator)


def state(net: nn.Module) -> Params:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def prunable(net: nn.Module) -> tuple[str, ...]:
    return tuple(f"{n}.weight" for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))


def elsewhere(make_net: Callable[[], nn.Module] = mlp, kind: type[LocalModule] = LocalModule) -> tuple[LocalModule, Params]:
    """A module, and the parameters of another network of the same kind, at which to measure."""
    torch.manual_seed(1)
    return kind(make_net(), SGD), state(make_net())


def losses(module: LocalModule, params: Params, batch) -> Callable[[Params], torch.Tensor]:
    """The mean loss of a batch as a function of some of the parameters, written out without fedprune.pruning."""

    def loss(some: Params) -> torch.Tensor:
        outputs = torch.func.functional_call(module.net, params | some, (batch[0],))
        if isinstance(module, Squares):
            return (outputs - batch[1]).square().sum(1).mean() / 2
        return nn.functional.cross_entropy(outputs, batch[1])

    return loss


def hessian(module: LocalModule, params: Params, names: tuple[str, ...], batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(the whole Hessian, the gradient) of the mean loss by the named tensors, flat, in float64."""
    params = {n: v.double() if v.is_floating_point() else v for n, v in params.items()}
    batch = tuple(part.double() if part.is_floating_point() else part for part in batch)
    sizes = [params[n].numel() for n in names]
    loss = losses(module, params, batch)

    def flat_loss(w: torch.Tensor) -> torch.Tensor:
        return loss({n: part.view(params[n].shape) for n, part in zip(names, w.split(sizes), strict=True)})

    flat = torch.cat([params[n].flatten() for n in names])
    return torch.func.hessian(flat_loss)(flat), torch.func.grad(flat_loss)(flat)


def living(params: Params, names: tuple[str, ...]) -> Mask:
    """The mask of networks in which only the dead are zero."""
    return {name: params[name] != 0 for name in names}


def flat(values: Params, names: tuple[str, ...]) -> torch.Tensor:
    return torch.cat([values[name].flatten() for name in names]).double()


def assert_no_trace(module: LocalModule, params: Params, measure: Callable[[], Params]) -> None:
    """Flags, buffers, parameters, gradients, hooks and the random state are as before; what comes back is nobody else's."""
    module.train()
    list(module.net.children())[-1].eval()  # flags that differ
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    flags, random = [part.training for part in module.modules()], torch.get_rng_state()
    net_before, params_before = state(module.net), {name: value.clone() for name, value in params.items()}

    found = measure()

    assert [part.training for part in module.modules()] == flags
    assert all(torch.equal(value, net_before[name]) for name, value in module.net.state_dict().items())
    assert all(torch.equal(value, params_before[name]) for name, value in params.items())
    assert not any(value.requires_grad for value in [*params.values(), *found.values()])
    assert all(bool((parameter.grad == 7.0).all()) for parameter in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert torch.equal(torch.get_rng_state(), random)
    for value in found.values():
        value.fill_(9.0)
    assert not any(bool((value == 9.0).any()) for value in [*params.values(), *module.net.state_dict().values()])
