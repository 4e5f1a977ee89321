"""Lightning's hooks, and those of them that a module overrides: in its class, in a base class, or on the instance itself.

CALLED are called where Lightning calls them, with its arguments: see train_with_hooks.py. REFUSED are refused by name when a
run is built. TRAINERS belong to other work of a pl.Trainer than training: they are not called here, and a run warns of it once.
"""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace

from fedprune.data.batches import Batch
from fedprune.local.module import LocalModule, SquaredError
from fedprune.local.tasks import MultiLabel, Regression

KNOWN = (LocalModule, SquaredError, Regression, MultiLabel)
"""Modules that override no hook, and whose training step asks nothing of the network but its outputs."""

TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")

SEE_GRADIENTS = ("backward", "on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping", "optimizer_step")

CALLED = (
    *("setup", "on_fit_start", "on_train_start", "on_train_epoch_start", *TRANSFERS, "on_train_batch_start"),
    *("on_before_zero_grad", "optimizer_zero_grad", "on_before_backward", *SEE_GRADIENTS, "lr_scheduler_step"),
    *("on_train_batch_end", "on_train_epoch_end", "on_train_end", "on_fit_end", "teardown"),
)

REFUSED = {
    "configure_model": "the network is made by the option of model: make it there",
    "configure_sharded_model": "the network is made by the option of model: make it there",
    "configure_callbacks": "there are no callbacks: write them as hooks of the module",
    "prepare_data": "examples come from the option of data: prepare them there",
    **{
        f"{part}_dataloader": "examples come from the option of data, and clients from that of partition: choose them there"
        for part in ("train", "val", "test", "predict")
    },
    "on_save_checkpoint": "a checkpoint of a run holds networks and what clients keep of them: keep nothing in the module",
    "on_load_checkpoint": "a checkpoint of a run holds networks and what clients keep of them: keep nothing in the module",
    "clip_gradients": "override configure_gradient_clipping instead",
}

TRAINERS = (
    *("validation_step", "test_step", "predict_step", "on_validation_model_zero_grad"),
    *(f"on_{verb}_{moment}" for verb in ("validation", "test", "predict") for moment in ("start", "end", "model_eval")),
    *(f"on_{verb}_{moment}" for verb in ("validation", "test") for moment in ("model_train",)),
    *(f"on_{verb}_epoch_{moment}" for verb in ("validation", "test", "predict") for moment in ("start", "end")),
    *(f"on_{verb}_batch_{moment}" for verb in ("validation", "test", "predict") for moment in ("start", "end")),
)

STEP = ("training_step", "loss", "outcome", "forward", "configure_optimizers", "log", "log_dict")
"""The other methods of a module that a step of training or an evaluation calls."""

_NAMES = frozenset((*CALLED, *REFUSED, *TRAINERS, *STEP))


def overridden(module: LocalModule) -> frozenset[str]:
    """Return the names of CALLED, REFUSED, TRAINERS and STEP that this module has of its own."""
    return _by_class(type(module)) | _NAMES.intersection(module.__dict__)  # type: ignore[arg-type]  # classes can be hashed


@functools.lru_cache(maxsize=64)
def _by_class(kind: type) -> frozenset[str]:
    return frozenset(name for name in _NAMES if getattr(kind, name, None) is not getattr(LocalModule, name, None))


def plain(module: LocalModule) -> bool:
    """Return whether a step of this module is only: the network's outputs, a known loss, and the optimizer."""
    return type(module) in KNOWN and not patched(module)


def patched(module: LocalModule) -> bool:
    """Return whether this instance has hooks or a step that its class does not have."""
    return not _NAMES.isdisjoint(module.__dict__) or not module.automatic_optimization


def called(module: LocalModule) -> SimpleNamespace:
    """Return, by name, each hook of CALLED: the module's own, or None."""
    names = overridden(module)
    return SimpleNamespace(**{name: getattr(module, name) if name in names else None for name in CALLED})


def problems(module: LocalModule) -> list[str]:
    """Return the problems of the module in the federated loop, each with what to do instead."""
    name, names = f"local.module {type(module).__name__}", overridden(module)
    wrong = [f"{name} overrides {hook}: {REFUSED[hook]}" for hook in REFUSED if hook in names]
    if not module.automatic_optimization:
        wrong.append(
            f"{name} has automatic_optimization=False, and what happens inside its step cannot keep the dead at zero: leave it "
            "True, return the loss from training_step, and override backward or optimizer_step"
        )
    if "forward" in names and "outcome" not in names:
        wrong.append(f"{name} overrides forward, which evaluation does not ask (it asks outcome): override outcome, too")
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        wrong.append(f"{name}.training_step asks for a dataloader_iter, and there is none: ask for batch")
    trained = [f"{n}" for n, p in module.named_parameters() if p.requires_grad and not n.startswith("net.")]
    if trained:
        wrong.append(
            f"{name} has parameters outside of its network, which would never leave the worker: {', '.join(trained)}; put them "
            "into the network, or set requires_grad=False if they are not trained"
        )
    return wrong


def has_transfers(module: LocalModule) -> bool:
    """Return whether the module overrides one of the hooks that a batch goes through before it is trained on."""
    return not overridden(module).isdisjoint(TRANSFERS)


def transferred(module: LocalModule, batch: Batch) -> Batch:
    """Return the batch as the module's transfer hooks leave it; the batch itself if it has none."""
    names = overridden(module)
    if "on_before_batch_transfer" in names:
        batch = module.on_before_batch_transfer(batch, 0)
    if "transfer_batch_to_device" in names:
        batch = module.transfer_batch_to_device(batch, module.device, 0)
    if "on_after_batch_transfer" in names:
        batch = module.on_after_batch_transfer(batch, 0)
    return batch
