"""The local training step, as a LightningModule: subclass it for your own task and name it in `local.module._target_`.

The federated loop calls the methods below without a Trainer (see train.py). The same module trains under a plain `pl.Trainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.data.batches import Batch as Batch
from fedprune.errors import RunError
from fedprune.local.lightning.job_trainer import JobTrainer, Outside
from fedprune.local.lightning.schedules import configured
from fedprune.local.outcomes import Outcome, by_name
from fedprune.local.training_step import loss_and_more, takes_number
from fedprune.precision import unfused

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes an optimizer of these parameters."""


class LocalModule(pl.LightningModule):
    """Classification with cross-entropy: batches are (inputs [B, ...], labels [B]), logits are [B, classes].

    In sequences each place is classified: labels [B, T], logits [B, classes, T]. An example is a whole sequence, and its loss
    and accuracy are means over its places; so those of a batch are per place (per character), too.

    net: the network that is pruned and federated; masks and plots use its names.
    optimizer: makes the optimizer, anew for every job of every client; without `fused` unless all parameters are float32 or
    float64 (see precision.py).
    metric: the name, among those of `outcome`, of the metric that the task is judged by in gates, tables and figures.
    larger_is_better: whether larger values of this metric are better.
    """

    metric: str = "accuracy"
    larger_is_better: bool = True

    def __init__(self, net: nn.Module, optimizer: Optimizer):
        super().__init__()
        self.net = net
        self.optimizer = unfused(optimizer, net.parameters())

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.net(inputs)
        return outputs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of one batch."""
        inputs, labels = batch
        loss = self.loss(self.net(inputs), labels, "mean")
        self.log("train/loss", loss)
        return loss

    def outcome(self, batch: Batch) -> Outcome | tuple[Tensor, Tensor]:
        """Return (loss [B], correct [B]) of each example: bool, or for sequences the fraction that is correct.

        Another task returns a mapping by name of what it measures: tensors [B] that are averaged, `loss` among them; and, for
        what is no mean over examples, torchmetrics objects of the module (`self.f1`), updated with this batch.
        """
        inputs, labels = batch
        logits = self.net(inputs)
        correct = logits.argmax(1) == labels
        return self.loss(logits, labels, "none"), correct if correct.dim() == 1 else over_places(correct.float())

    def loss(self, outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Return the loss of each example ("none": [B]) or their mean ("mean"). Outputs [B, classes, ...], labels [B, ...]."""
        losses = F.cross_entropy(outputs, labels, reduction=reduction)
        return over_places(losses) if losses.dim() > 1 else losses

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the outcome as val/<name> (under a Trainer)."""
        for name, value in by_name(self.outcome(batch)).items():
            logged = value.float().mean() if isinstance(value, Tensor) else value  # Lightning computes torchmetrics objects
            self.log(f"val/{name}", logged, batch_size=len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.optimizer(self.net.parameters())
        return optimizer

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log a value, with Lightning's arguments. What is logged in the training of a client becomes a metric of the round,
        see local/lightning/self_log.py; what is logged outside of training is dropped.
        """
        trainer = self._trainer
        if isinstance(trainer, JobTrainer):
            trainer.log(name, value, *args, **kwargs)
        elif trainer is not None:
            super().log(name, value, *args, **kwargs)

    @property
    def trainer(self) -> Any:
        """The pl.Trainer, or what stands in for it in the federated loop (see local/lightning/job_trainer.py)."""
        return Outside(self) if self._trainer is None and self._fabric is None else super().trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        pl.LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]  # a property, to mypy a value

    def step_loss(self, batch: Batch) -> Tensor:
        """Return the loss of training_step, for evidence. Raises RunError if it leaves the batch out."""
        training_step: Callable[..., object] = self.training_step
        loss, _ = loss_and_more(self, training_step(batch, 0) if takes_number(training_step) else training_step(batch))
        if loss is None:
            raise RunError(
                f"{type(self).__name__}.training_step left out a batch (it returned None) that evidence was to be measured on: "
                "return a loss, or choose criterion=magnitude"
            )
        return loss

    def one_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of configure_optimizers, in whatever form that returns it, without its schedules."""
        return configured(self)[0]


class SquaredError(LocalModule):
    """Classification with the squared error: sum over outputs of (output - target)^2, with target 1 for the right class and -1
    for the others. LeCun et al. 1990."""

    def loss(self, outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Return the squared error; shapes and `reduction` are LocalModule's."""
        classes = torch.arange(outputs.shape[1], device=labels.device).view(-1, *[1] * (labels.dim() - 1))
        right = labels[:, None] == classes  # one_hot does not go under vmap
        errors = (outputs - torch.where(right, 1.0, -1.0)).square().sum(1)
        if reduction == "mean":
            return errors.mean()
        return over_places(errors) if errors.dim() > 1 else errors


def over_places(values: Tensor) -> Tensor:
    """Return the mean over each example's places: [B, ...] -> [B]."""
    return values.flatten(1).mean(1)
