"""Tasks other than classification. Each is a LocalModule with a loss, what it measures, and the metric that it is judged by."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import BinaryF1Score

from fedprune.local.module import Batch, LocalModule, Optimizer, over_places
from fedprune.local.outcomes import Outcome


class Regression(LocalModule):
    """Least squares: targets [B] or [B, K] are real numbers, the network gives as many outputs, [B, 1] or [B, K].

    It measures the squared error (mse), which is the loss and the metric that it is judged by, and the absolute error (mae).
    Both are means over the K targets of an example.
    """

    metric = "mse"
    larger_is_better = False

    def loss(self, outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Return the squared error of each example ("none", [B]), or the mean over them ("mean")."""
        errors = _per_output(outputs, labels).square()
        return errors.mean() if reduction == "mean" else over_places(errors)

    def outcome(self, batch: Batch) -> Outcome:
        inputs, targets = batch
        outputs = self.net(inputs)
        squared = self.loss(outputs, targets, "none")
        return {"loss": squared, "mse": squared, "mae": over_places(_per_output(outputs, targets).abs())}


class MultiLabel(LocalModule):
    """Several labels at once: targets [B, L] are 0 or 1, the network gives the logits of each label, [B, L].

    It measures the fraction of an example's labels that are right (accuracy), and F1 over all labels of all examples (micro),
    by which it is judged; see scikit-learn's f1_score(average="micro").
    """

    metric = "f1"

    def __init__(self, net: nn.Module, optimizer: Optimizer):
        super().__init__(net, optimizer)
        self.f1 = BinaryF1Score()

    def loss(self, outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Return the mean cross-entropy over the labels of each example ("none", [B]), or over all of them ("mean")."""
        losses = F.binary_cross_entropy_with_logits(outputs, labels.to(outputs.dtype), reduction=reduction)
        return over_places(losses) if reduction == "none" else losses

    def outcome(self, batch: Batch) -> Outcome:
        """Return per example [B] its loss and the fraction of its labels that are right; and the micro F1 over all labels."""
        inputs, targets = batch
        logits = self.net(inputs)
        predicted = logits > 0
        self.f1.update(predicted, targets.long())
        accuracy = over_places((predicted == targets.bool()).float())
        return {"loss": self.loss(logits, targets, "none"), "accuracy": accuracy, "f1": self.f1}


def _per_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the differences [B, K]; targets [B] are those of one output. Raises RuntimeError for shapes that differ."""
    return outputs - targets.to(outputs.dtype).view_as(outputs)
