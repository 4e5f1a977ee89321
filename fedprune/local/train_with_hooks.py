"""Training in Lightning's order: the loop for modules that override hooks or the training step, log, or have schedules.

For each batch, hooks are called in this order; the lines without a name of a hook are the recipe's work (step.py):

    on_before_batch_transfer, transfer_batch_to_device, on_after_batch_transfer
    on_train_batch_start                      (-1 leaves out the rest of the pass)
    optimizer_step, which evaluates
        training_step                         under error feedback, at the pruned network (None: the batch is left out)
        on_before_zero_grad, optimizer_zero_grad
        on_before_backward, backward          of loss and penalty
            gradients are summed up if asked for, the proximal pull is added, gradients of dead weights are masked
        on_after_backward
        on_before_optimizer_step
            gradients of dead weights are masked again
        configure_gradient_clipping           or local.clip_norm
            SCAFFOLD's correction is added
        the optimizer's step
            dead weights are masked
    lr_scheduler_step                         for schedules by step, and on the last batch of a pass for those by epoch
    on_train_batch_end

Around the batches, setup, configure_optimizers, on_fit_start, on_train_start, on_train_epoch_start, on_train_epoch_end,
on_train_end, on_fit_end and teardown are called once per job or pass. Whatever a hook does to dead weights, they are zero
before the next batch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric

from fedprune.data.batches import Batch
from fedprune.errors import RunError
from fedprune.local.hooks import CALLED, SEE_GRADIENTS, called, has_transfers, overridden, transferred
from fedprune.local.lightning.job_trainer import JobTrainer, Planned, attached
from fedprune.local.lightning.schedules import Rates, configured, takes_closure
from fedprune.local.module import LocalModule
from fedprune.local.state.optimizer_state import OptimizerState, resume
from fedprune.local.step import Rules, Seen, Step, step_of
from fedprune.local.training_step import loss_and_more, takes_number


def sees_gradients(module: LocalModule) -> bool:
    """Return whether hooks of the module can see or change gradients."""
    return not overridden(module).isdisjoint(SEE_GRADIENTS)


def _set_up(module: LocalModule) -> None:
    """Call `setup`, and reset the module's torchmetrics objects, which have seen another client."""
    children = [child for name, child in module.named_children() if name != "net"]
    for metric in itertools.chain.from_iterable(child.modules() for child in children):
        if isinstance(metric, Metric):
            metric.reset()
    if "setup" in overridden(module):
        module.setup(stage=TrainerFn.FITTING)


def train(
    module: LocalModule,
    batches: Iterable[Batch],
    planned: Planned | None,
    rules: Rules,
    decay: float,
    optimizer_state: OptimizerState,
) -> tuple[torch.optim.Optimizer, Seen]:
    """Train the module in place. Returns its optimizer and what it has seen. This is the StepLoop (train.py) of modules with
    hooks."""
    if planned is None:
        batches = list(batches)
        planned = Planned(len(batches), len(batches))
    trainer = JobTrainer(module, planned, rules.recipe.clip_norm)
    with attached(module, trainer):
        _set_up(module)
        optimizer, schedules = configured(module)
        trainer.optimizers.append(optimizer)
        trainer.lr_scheduler_configs += schedules
        rates = Rates(optimizer, decay)
        resume(optimizer, optimizer_state)
        job = _Job(module, trainer, step_of(module.net, optimizer, rules, hooked=True, watched=sees_gradients(module)), rates)
        job.train(batches)
        return optimizer, Seen(job.losses, job.sizes, job.steps, trainer.recorder.logged())


class _Job:
    """One job in Lightning's order. losses, sizes: of the batches that had a loss. steps: that the optimizer took."""

    def __init__(self, module: LocalModule, trainer: JobTrainer, step: Step, rates: Rates):
        self.module, self.trainer, self.step, self.rates = module, trainer, step, rates
        self.hooks, self.optimizer = called(module), trainer.optimizers[0]
        self.losses, self.sizes, self.steps = list[Tensor](), list[int](), 0
        self._transfers = has_transfers(module)
        self._watched = bool(step.masks) and sees_gradients(module)
        self._takes_closure = takes_closure(self.optimizer)
        self._touches_weights = bool(step.masks) and not overridden(module).isdisjoint(CALLED)
        self._number, self._arguments = 0, tuple[object, ...]()  # of the batch, and those of training_step
        self._takes_number = takes_number(module.training_step)
        self._result: tuple[Tensor | None, Mapping[str, object]] | None = None
        trainer.strategy.step = self._take_step

    def train(self, batches: Iterable[Batch]) -> None:
        """Train on these batches."""
        _call(self.hooks.on_fit_start)
        batches = iter(batches)
        first = next(batches, None)
        if first is not None:
            _call(self.hooks.on_train_start)
            while first is not None and not self.trainer.should_stop:
                self._pass(itertools.islice(itertools.chain((first,), batches), self.trainer.num_training_batches))
                first = next(batches, None)
            _call(self.hooks.on_train_end)
        _call(self.hooks.on_fit_end)
        if self.hooks.teardown is not None:
            self.hooks.teardown(stage=TrainerFn.FITTING)
        self.step.keep_dead()

    def _pass(self, batches: Iterator[Batch]) -> None:
        """Train for one pass over the examples, or for the part of it that the job has."""
        _call(self.hooks.on_train_epoch_start)
        for number, batch in enumerate(batches):
            if not self._batch(batch, number):
                for _ in batches:  # the rest of the pass
                    pass
            elif self.trainer.should_stop:
                break
        _call(self.hooks.on_train_epoch_end)
        self.trainer.current_epoch += 1

    def _batch(self, batch: Batch, number: int) -> bool:
        """Train on one batch. Returns whether the pass goes on."""
        self.trainer.recorder.size = size = len(batch[0])
        given = transferred(self.module, batch) if self._transfers else batch
        last = number + 1 == self.trainer.num_training_batches
        if self.hooks.on_train_batch_start is not None and self.hooks.on_train_batch_start(given, number) == -1:
            self._schedule(number, last=True)
            return False
        self.trainer.is_last_batch = last
        if self._touches_weights:
            self.step.keep_dead()
        self._number, self._result = number, None
        self._arguments = (given, number) if self._takes_number else (given,)
        self._optimize(number)
        if self._result is None:
            raise RunError("optimizer_step has not called its optimizer_closure, which is what computes the loss and gradients")
        loss, more = self._result
        if loss is not None:
            self.losses.append(loss.detach())
            self.sizes.append(size)
        self.trainer.global_step += 1
        if self.trainer.lr_scheduler_configs:
            self._schedule(number, last)
        if self.hooks.on_train_batch_end is not None:
            outputs = {} if loss is None else {"loss": loss.detach().clone(), **more}
            self.hooks.on_train_batch_end(outputs, given, number)
        self.trainer.recorder.batch_ends(loss)
        return True

    def _optimize(self, number: int) -> None:
        if self.hooks.optimizer_step is None:
            self._take_step(self.optimizer, self._closure)
        else:
            wrapped = self.trainer.strategy._lightning_optimizers[0]
            self.hooks.optimizer_step(self.trainer.current_epoch, number, wrapped, self._closure)

    def _take_step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], object], **options: Any) -> object:
        """Take a step of the optimizer, which calls the closure. options: for `optimizer.step`."""

        def closed() -> object:
            loss = closure()
            if self.hooks.on_before_optimizer_step is not None:
                self.hooks.on_before_optimizer_step(optimizer)
            if self._watched:
                self.step.mask_gradients()
            self._clip(optimizer)
            self.step.correct()
            return loss

        if self._takes_closure:
            loss: object = optimizer.step(closure=closed, **options)  # type: ignore[arg-type]  # closures may return any loss
        else:
            loss = closed()
            optimizer.step(**options)
        self.step.keep_dead()
        self.steps += self._result is None or self._result[0] is not None
        return loss

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        if self.hooks.configure_gradient_clipping is None:
            self.step.clip()
            return
        trainer = self.trainer
        self.hooks.configure_gradient_clipping(
            optimizer, gradient_clip_val=trainer.gradient_clip_val, gradient_clip_algorithm=trainer.gradient_clip_algorithm
        )

    @torch.enable_grad()
    def _closure(self) -> Tensor | None:
        """Compute the loss of the batch and its gradients."""
        hooks, optimizer = self.hooks, self.optimizer
        whole = self.step.hide_dead()
        training_step: Callable[..., object] = self.module.training_step
        loss, _ = self._result = loss_and_more(self.module, training_step(*self._arguments))
        if hooks.on_before_zero_grad is not None:
            hooks.on_before_zero_grad(optimizer)
        if hooks.optimizer_zero_grad is None:
            optimizer.zero_grad()
        else:
            hooks.optimizer_zero_grad(self.trainer.current_epoch, self._number, optimizer)
        if loss is not None:
            self._backward(loss if self.step.penalty is None else loss + self.step.penalty())
        self.step.show_dead(whole)
        return None if loss is None else loss.detach()

    def _backward(self, loss: Tensor) -> None:
        hooks = self.hooks
        if hooks.on_before_backward is not None:
            hooks.on_before_backward(loss)
        if hooks.backward is None:
            loss.backward()
        else:
            hooks.backward(loss)
        self.step.after_backward()
        if hooks.on_after_backward is not None:
            hooks.on_after_backward()

    def _schedule(self, number: int, last: bool) -> None:
        """Let the schedules that are due take a step: those by step, and those by epoch after the last batch of a pass."""
        due = {"step": number + 1} | ({"epoch": self.trainer.current_epoch + 1} if last else {})
        for interval, done in due.items():
            for config in self.trainer.lr_scheduler_configs:
                if config.interval == interval and done % config.frequency == 0:
                    self.rates.scheduled(functools.partial(self.module.lr_scheduler_step, config.scheduler, None))


def _call(hook: Callable[[], object] | None) -> None:
    if hook is not None:
        hook()
