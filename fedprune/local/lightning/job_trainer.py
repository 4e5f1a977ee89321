"""JobTrainer stands in for the pl.Trainer: it is the module's `self.trainer` in the federated loop.

To its module, a job (one client's training in one round) is like a `fit` of a new Trainer: epochs and steps count from 0, and
the optimizer and its schedules are made anew. Attributes of a Trainer that a job does not have are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.utilities.types import LRSchedulerConfig
from torch import Tensor

from fedprune.local.lightning.self_log import Recorder

if TYPE_CHECKING:
    from fedprune.local.module import LocalModule


class Planned(NamedTuple):
    """The length of a job. a_pass: the batches of one pass over the client's examples. total: the batches of the job."""

    a_pass: int
    total: int


class _NoLogger:
    """The logger of a JobTrainer: it is false, and its attributes are errors that say what to use instead."""

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"self.logger.{name}: clients have no logger; self.log and self.log_dict reach metrics.jsonl and the run's logger"
        )


class JobStrategy:
    """The part of a Trainer's strategy that modules and their optimizers use, for one process and one device."""

    def __init__(self, optimizers: list[torch.optim.Optimizer], device: torch.device):
        self.root_device, self._optimizers, self._wrapped = device, optimizers, list[LightningOptimizer]()
        self.step: Callable[..., object] | None = None

    @property
    def _lightning_optimizers(self) -> list[LightningOptimizer]:
        if not self._wrapped:  # it takes as long as a small step of training, and few ask for it
            for optimizer in self._optimizers:
                wrapped = LightningOptimizer._to_lightning_optimizer(optimizer, self)  # type: ignore[arg-type]  # no Strategy
                self._wrapped.append(wrapped)
        return self._wrapped

    def optimizer_step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], object], **options: object) -> object:
        """Take the optimizer's step as the loop does, with clipping and masking."""
        if self.step is None:
            raise RuntimeError("an optimizer's step is taken inside training only")
        return self.step(optimizer, closure, **options)

    def reduce(self, tensor: object, *_: object, **__: object) -> object:
        return tensor

    def all_gather(self, tensor: Tensor, *_: object, **__: object) -> Tensor:
        return tensor

    def broadcast(self, value: object, *_: object, **__: object) -> object:
        return value

    def barrier(self, *_: object, **__: object) -> None:
        pass


class JobTrainer:
    """`self.trainer` while a module trains. global_step counts the optimizer's steps, current_epoch the passes that are done;
    a module that sets should_stop ends the job after the batch."""

    is_global_zero, global_rank, local_rank, node_rank = True, 0, 0, 0
    world_size, num_devices, num_nodes, accumulate_grad_batches = 1, 1, 1, 1
    sanity_checking = validating = testing = predicting = evaluating = barebones = fast_dev_run = False
    training, should_stop, is_last_batch = True, False, False
    gradient_clip_algorithm, progress_bar_callback, datamodule, profiler = None, None, None, None
    precision, max_steps, min_epochs, min_steps = "32-true", -1, 0, None
    logger = _NoLogger()

    def __init__(self, module: LocalModule, planned: Planned, clip_norm: float | None = None):
        self.lightning_module, self.model = module, module
        self.current_epoch = self.global_step = 0
        self.num_training_batches, self.estimated_stepping_batches = planned
        self.max_epochs = math.ceil(planned.total / max(planned.a_pass, 1))
        self.gradient_clip_val = clip_norm
        self.optimizers: list[torch.optim.Optimizer] = []
        self.lr_scheduler_configs: list[LRSchedulerConfig] = []
        self.strategy = JobStrategy(self.optimizers, module.device)
        self.precision_plugin = Precision()
        self.recorder = Recorder()
        self.loggers, self.callbacks = list[object](), list[object]()

    def log(
        self,
        name: str,
        value: object,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: object = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: object = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Record a value; the arguments are those of LightningModule.log. Each round has one value, whether on_step or on_epoch
        asks for it. It has none if both are False or if `logger` is False."""
        if logger is not False and not (on_step is False and on_epoch is False):
            self.recorder.log(name, value, reduce_fx, batch_size)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        attributes = ", ".join(sorted({*vars(type(self)), *vars(self)} - {"recorder", "log"} - _PRIVATE))
        raise AttributeError(f"self.trainer.{name}: there is no pl.Trainer in the federated loop. A job has {attributes}")


_PRIVATE = {name for name in vars(JobTrainer) if name.startswith("_")}


class Outside(JobTrainer):
    """`self.trainer` outside of training: while a network is evaluated or evidence is measured."""

    def __init__(self, module: LocalModule):
        super().__init__(module, Planned(1_000, 1_000))  # schedules divide by it, though they take no step here
        self.training = module.training
        self.validating = self.evaluating = not module.training


@contextmanager
def attached(module: LocalModule, trainer: JobTrainer) -> Iterator[None]:
    """Inside, this is the module's trainer. Afterwards it has none, and the same parameters require gradients as before."""
    trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.trainer = trainer
    try:
        yield
    finally:
        module.trainer = None
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
