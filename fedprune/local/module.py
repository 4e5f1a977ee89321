"""The local training step, as a LightningModule: subclass it for your own task and name it in `local.module._target_`.

The federated loop calls the hooks below without a Trainer (see train.py); the same module trains under a plain `pl.Trainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.errors import RunError
from fedprune.local.answer import read, takes_number
from fedprune.local.lightning.job_trainer import JobTrainer, Outside
from fedprune.local.lightning.schedules import configured
from fedprune.local.outcomes import Outcome, by_name
from fedprune.precision import unfused

Batch = tuple[Tensor, ...]


class LocalModule(pl.LightningModule):
    """Classification with cross-entropy: batches are (inputs [B, ...], labels [B]), the network gives logits [B, classes].

    Of sequences, each place is classified: labels [B, T], logits [B, classes, T]. An example is a whole sequence, and its loss
    and accuracy are the means over its places; so those of a batch are per place (per character), too.

    net: the network that is pruned and federated; names in masks and plots are those of `net`.
    optimizer: parameters -> torch optimizer, made anew for every job of every client; without `fused` unless all parameters
    are float32 or float64 (see precision.py).
    metric: of what `outcome` gives, by name, what the task is judged by; larger_is_better: which way. Gates, tables and figures
    go by it. Another task names its own.
    """

    metric: str = "accuracy"
    larger_is_better: bool = True

    def __init__(self, net: nn.Module, optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]):
        super().__init__()
        self.net = net
        self.optimizer = unfused(optimizer, net.parameters())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss of one batch."""
        inputs, labels = batch
        loss = self.loss(self.net(inputs), labels, "mean")
        self.log("train/loss", loss)
        return loss

    def outcome(self, batch: Batch) -> Outcome | tuple[Tensor, Tensor]:
        """Return what evaluations are made of: (loss [B], correct [B]: bool, or of sequences the fraction), of each example.

        Another task returns a mapping of what it measures, by name: tensors [B], `loss` among them, which are averaged; and
        torchmetrics objects of the module's own (`self.f1`), updated with this batch, for what is no mean over examples.
        """
        inputs, labels = batch
        logits = self.net(inputs)
        correct = logits.argmax(1) == labels
        return self.loss(logits, labels, "none"), correct if correct.dim() == 1 else over_places(correct.float())

    def loss(self, outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Of outputs [B, classes, ...] and labels [B, ...]: per example ("none", [B]), or the mean over them ("mean")."""
        losses = F.cross_entropy(outputs, labels, reduction=reduction)
        return over_places(losses) if losses.dim() > 1 else losses

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the outcome as val/<name> (under a Trainer)."""
        for name, value in by_name(self.outcome(batch)).items():
            logged = value.float().mean() if isinstance(value, Tensor) else value  # Lightning computes torchmetrics objects
            self.log(f"val/{name}", logged, batch_size=len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.net.parameters())

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """As Lightning's. In the federated loop, what is logged during training is a metric of the round, see
        local/lightning/self_log.py.

        Outside of training there is nobody to log to, and nothing is spent on it.
        """
        trainer = self._trainer
        if isinstance(trainer, JobTrainer):
            trainer.log(name, value, *args, **kwargs)
        elif trainer is not None:
            super().log(name, value, *args, **kwargs)

    @property
    def trainer(self) -> Any:
        """The pl.Trainer; in the federated loop, what there is of one (see local/lightning/job_trainer.py)."""
        return Outside(self) if self._trainer is None and self._fabric is None else super().trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        pl.LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]

    def step_loss(self, batch: Batch) -> Tensor:
        """Return the loss that training_step gives of a batch: what evidence is measured by. Raises RunError if it has none."""
        loss, _ = read(self, self.training_step(*((batch, 0) if takes_number(self.training_step) else (batch,))))
        if loss is None:
            raise RunError(
                f"{type(self).__name__}.training_step left out a batch (it returned None) that evidence was to be measured on: "
                "return a loss, or choose criterion=magnitude"
            )
        return loss

    def one_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer that configure_optimizers gives, in whatever form, without its schedules."""
        return configured(self)[0]


class SquaredError(LocalModule):
    """The sum over the outputs of (output - target)^2, targets 1 for the right class and -1 for others. LeCun et al. 1990."""

    def loss(self, outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """As LocalModule's."""
        classes = torch.arange(outputs.shape[1], device=labels.device).view(-1, *[1] * (labels.dim() - 1))
        right = labels[:, None] == classes  # one_hot does not go under vmap
        errors = (outputs - torch.where(right, 1.0, -1.0)).square().sum(1)
        return errors.mean() if reduction == "mean" else over_places(errors) if errors.dim() > 1 else errors


def over_places(values: Tensor) -> Tensor:
    """The mean over each example's places: [B, ...] -> [B]."""
    return values.flatten(1).mean(1)
