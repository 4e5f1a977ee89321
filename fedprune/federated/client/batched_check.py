"""Checks whether several clients can be trained as one batched model.

Known obstacles have names. No list could tell what a network does in its forward pass (draw numbers, mix examples, run layers
that cannot be batched), so that is tried.
"""

from __future__ import annotations

import functools
import warnings

import torch

from fedprune.local.hooks import KNOWN, patched
from fedprune.local.module import Batch, LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.step import ENTRYWISE
from fedprune.local.train import fit, is_batchnorm, unload
from fedprune.local.train_vmapped import Share, fit_together
from fedprune.plain_layers import listens
from fedprune.precision import is_number
from fedprune.types import Params, Subnet


def obstacle(module: LocalModule, recipe: Recipe, batch: Batch) -> str | None:
    """Return why `fit_together` would not give what `fit` gives, or None. batch: two examples or more, to try both on."""
    if type(module) not in KNOWN or patched(module):
        return f"what {type(module).__name__} does in a step is not known"
    optimizer = type(module.optimizer([*module.net.parameters()]))
    rules = {
        "local.clip_norm is of one client's gradient": recipe.clip_norm is None,
        "local.error_feedback trains what is dead": not recipe.error_feedback,
        "federated.optimizer_state=kept": not recipe.keep_optimizer,
        "hooks wait for gradients of its network": not listens(module.net),
        f"{optimizer.__name__} may not treat each entry by itself": optimizer in ENTRYWISE,
        "BatchNorm looks at whole batches (federated.batchnorm=frozen does not)": recipe.freeze_batchnorm
        or not any(is_batchnorm(layer) for layer in module.net.modules()),
    }
    return next((why for why, fine in rules.items() if not fine), None) or _tried(module, recipe, batch)


def _tried(module: LocalModule, recipe: Recipe, batch: Batch) -> str | None:
    """Let two clients, one of whom has an example less, take a step of plain SGD both ways. Returns the difference, or None."""
    plain = type(module)(module.net, functools.partial(torch.optim.SGD, lr=1.0)).to(module.device)
    sent = unload(module)
    other = {name: 0.9 * tensor if is_number(tensor) else tensor for name, tensor in sent.items()}
    fewer = tuple(part[:-1] for part in batch)
    shares = [Share(Subnet(sent, {}), [batch], 1), Share(Subnet(other, {}), [fewer], 1)]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "There is a performance drop")  # a layer would run client by client after all
            together = fit_together(plain, shares, recipe)
    except Exception as error:  # whatever it is: one after the other, it may not arise
        return f"its network cannot be batched ({str(error).partition('.')[0]})"
    try:
        apart = [fit(plain, share.subnet, share.batches, recipe) for share in shares]
    except Exception as error:  # each client will say so of itself
        return f"its network cannot be trained ({str(error).partition('.')[0]})"
    same = (_alike(a.params, b.params, share.subnet.params) for a, b, share in zip(together, apart, shares, strict=True))
    return None if all(same) else "its network, batched, comes to something else"


def _alike(made: Params, wanted: Params, sent: Params) -> bool:
    """Return whether each tensor moved in the same way, up to a hundredth of the way or a trifle of the tensor."""
    return all(
        torch.equal(made[name], value)  # what does not move may be infinite, or no number
        or bool((made[name] - value).float().norm() <= 0.01 * (value - sent[name]).float().norm() + 1e-5 * value.float().norm())
        for name, value in wanted.items()
    )
