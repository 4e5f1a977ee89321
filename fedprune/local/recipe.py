"""The recipe of a client's training in one round: the checked values of `local`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedprune.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """The recipe of a client's training in one round.

    epochs: passes over the client's training examples; or steps: the number of batches, over several passes if needed.
    lr_decay: multiplies the learning rate once per round, and is set back by a rewind. clip_norm: the gradient's greatest L2
    norm (null: no clipping).
    proximal_mu: FedProx's pull to the weights that were sent, mu/2 |w - w_sent|^2. Li et al. 2020.
    retrain_lr: multiplies the learning rate once anything is pruned. fixed: layers, by kind (conv, linear) or name, that are
    not trained once anything is pruned. Han et al. 2015.
    freeze_batchnorm: BatchNorm normalises with the running statistics that it was sent, and does not change them.
    keep_weights: the client keeps the trained values of the prunable tensors for its next round.
    error_feedback: the forward and backward pass see the pruned network, and the step changes all weights. Dead weights are
    trained too, and an event may make them alive. Lin et al. 2020 (dynamic pruning with feedback); Long et al. 2023 (FedDIP).
    compact: `auto` trains a network as small as its mask where that gives the same result and is faster; `never` does not.
    drop_last: the last batch of a pass is left out if it is smaller than the others. smallest: a last batch of fewer examples
    joins the batch before it, for networks that cannot be trained on one example; experiment/checks/batches.py finds it.
    keep_optimizer: the client keeps the optimizer's state, and goes on from it in its next round.
    """

    epochs: int | None = 1
    steps: int | None = None
    batch_size: int = 32
    drop_last: bool = False
    lr_decay: float = 1.0
    clip_norm: float | None = None
    proximal_mu: float = 0.0
    retrain_lr: float = 1.0
    fixed: Sequence[str | float] = ()
    freeze_batchnorm: bool = False
    error_feedback: bool = False
    compact: str = "auto"
    keep_optimizer: bool = False
    keep_weights: bool = False
    smallest: int = 1

    def __post_init__(self) -> None:
        rules = {
            f"local.epochs={self.epochs} and local.steps={self.steps}: give one and set the other to null": (
                (self.epochs is None) != (self.steps is None)
            ),
            f"local.epochs={self.epochs} must be at least 1": self.epochs is None or self.epochs >= 1,
            f"local.steps={self.steps} must be at least 1": self.steps is None or self.steps >= 1,
            f"local.batch_size={self.batch_size} must be at least 1": self.batch_size >= 1,
            f"local.lr_decay={self.lr_decay} multiplies the learning rate every round: more than 0": 0
            < self.lr_decay
            < math.inf,
            f"local.clip_norm={self.clip_norm} must be positive; null for no clipping": self.clip_norm is None
            or 0 < self.clip_norm < math.inf,
            f"local.proximal_mu={self.proximal_mu} must not be negative": 0 <= self.proximal_mu < math.inf,
            f"local.compact={self.compact}: type auto or never": self.compact in ("auto", "never"),
            f"local.retrain_lr={self.retrain_lr} multiplies the learning rate: more than 0": 0 < self.retrain_lr < math.inf,
        }
        problems = [problem for problem, fine in rules.items() if not fine]
        if problems:
            raise ConfigError(problems)

    def batches(self, examples: int) -> int:
        """Return the number of batches that a client with so many training examples trains on in a round."""
        return self.steps if self.steps is not None else (self.epochs or 0) * self.batches_of_a_pass(examples)

    def batches_of_a_pass(self, examples: int) -> int:
        """Return the number of batches in a pass over so many examples."""
        full, rest = divmod(examples, self.batch_size)
        joins = full > 0 and rest < self.smallest
        return full + (rest > 0 and not joins and not self.drop_last)

    def examples_of_a_pass(self, examples: int) -> int:
        """Return how many of so many examples a pass sees."""
        return examples - examples % self.batch_size if self.drop_last else examples
