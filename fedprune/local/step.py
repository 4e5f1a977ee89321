"""The operations that a recipe (recipe.py) adds to a training step of the module and its optimizer, in this order:

1. Under error feedback, dead weights are zero during the forward and the backward pass (`hide_dead`, `show_dead`).
2. After the backward pass of loss and penalty (`after_backward`): gradients are added up if an event asks for them; the pull of
   the proximal term is added; gradients of dead weights become zero if clipping, hooks or the optimizer would see them.
3. Before the optimizer's step: gradients are clipped (`clip`), and then corrected (`correct`: SCAFFOLD).
4. After the optimizer's step, dead weights are zero again (`keep_dead`).

local/train_with_hooks.py says where between these the hooks of a module are called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedprune.local.lightning.self_log import Logged
from fedprune.local.recipe import Recipe
from fedprune.precision import WIDER, wide
from fedprune.types import Params

ENTRYWISE = {
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
    torch.optim.ASGD,
    torch.optim.Rprop,
}
"""Optimizers that update each entry by itself. Dead entries then do not affect living ones, and masking weights after the step
is enough. For other optimizers, and for clipping, gradients are masked before, so that no state or norm contains dead
entries."""


class Rules(NamedTuple):
    """The settings of one job's steps. dead: the parameters in which something is dead, and their masks as zeros and ones.
    penalty: the term that is added to the loss before it is differentiated. correction: by parameter, what is added to
    gradients. sums: by parameter, the tensor in which its gradients are added up."""

    recipe: Recipe
    dead: tuple[list[Tensor], list[Tensor]]
    penalty: Callable[[], Tensor] | None
    correction: Params
    sums: Params


class Seen(NamedTuple):
    """A record of a job: the losses and sizes of its batches, the number of the optimizer's steps, and what the module
    logged."""

    losses: list[Tensor]
    sizes: list[int]
    steps: int
    logged: Logged = MappingProxyType({})


Clip = Callable[[list[Tensor], float], Tensor]
"""(parameters, the greatest norm) -> the norm of their gradients, which are scaled down to the greatest norm in place."""


@dataclass(frozen=True)
class Step:
    """The recipe's part in every step of one job. Its tensors are the network's, and are changed in place.

    weights, masks: the parameters in which something is dead, and their masks as zeros and ones; empty under error feedback.
    feedback: the same two under error feedback, else empty. masks_gradients: whether gradients of dead weights become zero.
    parameters: those that are trained. clip_norm: the gradient's greatest norm (None: it is not clipped). clips: scales
    gradients down to it. mu: the strength of the proximal pull to `sent`, the parameters that the client was sent (empty: no
    pull). corrected: (parameter, what is added to its gradient). sums: (parameter, the sum of its gradients). penalty: the term
    that is added to the loss before it is differentiated.
    """

    weights: list[Tensor]
    masks: list[Tensor]
    feedback: tuple[list[Tensor], list[Tensor]]
    masks_gradients: bool
    parameters: list[Tensor]
    clip_norm: float | None
    clips: Clip
    mu: float
    sent: list[Tensor]
    corrected: list[tuple[Tensor, Tensor]]
    sums: list[tuple[Tensor, Tensor]]
    penalty: Callable[[], Tensor] | None

    def hide_dead(self) -> list[Tensor]:
        """Under error feedback, set dead weights to zero. Returns the weights as they were."""
        weights, masks = self.feedback
        if not weights:
            return []
        with torch.no_grad():
            whole = [weight.detach().clone() for weight in weights]
            torch._foreach_mul_(weights, masks)
        return whole

    def show_dead(self, whole: list[Tensor]) -> None:
        """Undo `hide_dead`."""
        if whole:
            with torch.no_grad():
                torch._foreach_copy_(self.feedback[0], whole)

    def after_backward(self) -> None:
        """Add up gradients, add the proximal pull, and mask the gradients of dead weights if something would see them."""
        for parameter, total in self.sums:
            if parameter.grad is not None:
                total.add_(parameter.grad)
        if self.sent:
            pull(self.parameters, self.sent, self.mu)
        if self.masks_gradients:
            self.mask_gradients()

    def mask_gradients(self) -> None:
        """Set the gradients of dead weights to zero."""
        for weight, mask in zip(self.weights, self.masks, strict=True):
            if weight.grad is not None:
                weight.grad.mul_(mask)

    def clip(self) -> None:
        """Scale the gradient down to the greatest norm."""
        if self.clip_norm is not None:
            self.clips(self.parameters, self.clip_norm)

    def correct(self) -> None:
        """Add SCAFFOLD's correction to the gradients."""
        for parameter, shift in self.corrected:
            if parameter.grad is not None:
                parameter.grad.add_(shift)

    def keep_dead(self) -> None:
        """Set dead weights to zero."""
        if self.masks:
            with torch.no_grad():
                torch._foreach_mul_(self.weights, self.masks)


def step_of(
    net: nn.Module, optimizer: torch.optim.Optimizer, rules: Rules, hooked: bool = False, watched: bool = False
) -> Step:
    """Return the recipe's part in the steps of this optimizer.

    hooked: whether the module has hooks, which may make parameters trainable later. watched: whether they see gradients.
    """
    recipe, dead, penalty, correction, sums = rules
    named = [(name, parameter) for name, parameter in net.named_parameters() if hooked or parameter.requires_grad]
    parameters: list[Tensor] = [parameter for _, parameter in named]
    weights, masks = ([], []) if recipe.error_feedback else dead
    sees_whole_tensors = watched or recipe.clip_norm is not None or type(optimizer) not in ENTRYWISE
    return Step(
        weights=weights,
        masks=masks,
        feedback=dead if recipe.error_feedback else ([], []),
        masks_gradients=bool(masks) and sees_whole_tensors,
        parameters=parameters,
        clip_norm=recipe.clip_norm,
        clips=clip_wide if any(p.dtype in WIDER for p in parameters) else nn.utils.clip_grad_norm_,
        mu=recipe.proximal_mu,
        sent=[p.detach().clone() for p in parameters] if recipe.proximal_mu else [],
        corrected=[(p, correction[name].to(p)) for name, p in named if name in correction],
        sums=[(net.get_parameter(name), total) for name, total in sums.items()],
        penalty=penalty,
    )


def pull(parameters: list[Tensor], sent: list[Tensor], mu: float) -> None:
    """Add the gradient of mu/2 |w - w_sent|^2."""
    with torch.no_grad():
        for parameter, start in zip(parameters, sent, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=mu)


def clip_wide(parameters: list[Tensor], most: float) -> Tensor:
    """Multiply all gradients by min(1, most / norm) in place, and return their L2 norm. The norm is taken in float32: in
    float16 a norm of more than 65504 would be infinite, and all gradients would become zero."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(wide(gradient)) for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
    return norm
