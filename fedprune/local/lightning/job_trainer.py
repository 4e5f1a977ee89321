"""JobTrainer: what a module finds as `self.trainer` in the federated loop, where there is no pl.Trainer.

A job (one client's training in one round) is to its module what a `fit` of a new Trainer is: epochs and steps count from 0, the
optimizer and its schedules are made anew. What a Trainer has and a job has not is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.utilities.types import LRSchedulerConfig
from torch import Tensor

from fedprune.local.lightning.self_log import Recorder

if TYPE_CHECKING:
    from fedprune.local.module import LocalModule


class Planned(NamedTuple):
    """How long a job is. a_pass: the batches of one pass over the client's examples. total: the batches of the job."""

    a_pass: int
    total: int


class _NoLogger:
    """Stands where a Trainer has its logger: it is false, and says what to use instead."""

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"self.logger.{name}: clients have no logger; self.log and self.log_dict reach metrics.jsonl and the run's logger"
        )


class JobStrategy:
    """What a module and its optimizers ask of a Trainer's strategy: one process, one device."""

    def __init__(self, optimizers: list[torch.optim.Optimizer], device: torch.device):
        self.root_device, self._optimizers, self._wrapped = device, optimizers, list[LightningOptimizer]()
        self.step: Callable[..., Any] | None = None

    @property
    def _lightning_optimizers(self) -> list[LightningOptimizer]:
        if not self._wrapped:  # it takes as long as a small step of training, and few ask for it
            self._wrapped += [LightningOptimizer._to_lightning_optimizer(one, self) for one in self._optimizers]  # type: ignore[arg-type]
        return self._wrapped

    def optimizer_step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any], **options: Any) -> Any:
        """Do the optimizer's step, and what belongs to it, as the loop does."""
        if self.step is None:
            raise RuntimeError("an optimizer's step is taken inside training only")
        return self.step(optimizer, closure, **options)

    def reduce(self, tensor: Any, *_: Any, **__: Any) -> Any:
        return tensor

    def all_gather(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return tensor

    def broadcast(self, value: Any, *_: Any, **__: Any) -> Any:
        return value

    def barrier(self, *_: Any, **__: Any) -> None:
        pass


class JobTrainer:
    """`self.trainer` while a module trains: see the attributes. global_step counts steps of the optimizer, current_epoch the
    passes that are done; setting should_stop ends the job after the batch."""

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
        self.loggers, self.callbacks = list[Any](), list[Any]()

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Take up what LightningModule.log is given. There is one value a round, whether on_step or on_epoch asks for it; none
        if both are false or if the logger is not to know."""
        if logger is not False and not (on_step is False and on_epoch is False):
            self.recorder.log(name, value, reduce_fx, batch_size)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        there = ", ".join(sorted({*vars(type(self)), *vars(self)} - {"recorder", "log"} - _PRIVATE))
        raise AttributeError(f"self.trainer.{name}: there is no pl.Trainer in the federated loop. A job has {there}")


_PRIVATE = {name for name in vars(JobTrainer) if name.startswith("_")}


class Outside(JobTrainer):
    """`self.trainer` outside of training: where a network is evaluated, or evidence measured."""

    def __init__(self, module: LocalModule):
        super().__init__(module, Planned(1_000, 1_000))  # schedules divide by it, though they take no step here
        self.training = module.training
        self.validating = self.evaluating = not module.training


@contextmanager
def attached(module: LocalModule, trainer: JobTrainer) -> Iterator[None]:
    """Inside, this is the module's trainer. Afterwards there is none, and every parameter is trained or not as before."""
    trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.trainer = trainer  # type: ignore[assignment]
    try:
        yield
    finally:
        module.trainer = None
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
