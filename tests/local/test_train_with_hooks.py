"""A module of one's own means in the federated loop what it means under a pl.Trainer: hooks, order, schedules, logs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from fedprune.errors import RunError
from fedprune.local import hooks
from fedprune.local.lightning.job_trainer import Planned
from fedprune.local.module import LocalModule, SquaredError
from fedprune.local.recipe import Recipe
from fedprune.local.train import Trained, fit
from fedprune.pruning.evidence.gradients import grads, movement
from fedprune.pruning.mask import apply
from fedprune.types import Mask, Params, Subnet

SGD = partial(torch.optim.SGD, lr=0.2, momentum=0.5, weight_decay=0.01)
PASSES, BATCHES = 3, 4


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def data(batches: int = BATCHES, size: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches, the last of which is smaller."""
    generator = torch.Generator().manual_seed(1)
    sizes = [size] * (batches - 1) + [size - 2]
    return [(torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def sent() -> Params:
    return {name: value.clone() for name, value in net().state_dict().items()}


def federated(module: LocalModule, recipe: Recipe | None = None, passes: int = PASSES, batches=None, **more: Any) -> Trained:
    """One client's job: so many passes over the batches."""
    batches = batches or data()
    planned = Planned(len(batches), passes * len(batches))
    return fit(module, Subnet(sent(), {}), batches * passes, recipe or Recipe(), planned=planned, **more)


def lightning(module: LocalModule, passes: int = PASSES, batches=None, **options: Any) -> pl.Trainer:
    """The same under a Trainer."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=passes, **quiet, **options)
    trainer.fit(module, DataLoader(batches or data(), batch_size=None))
    return trainer


def assert_same(module: LocalModule, trained: Trained) -> None:
    """Not a bit is different."""
    state = module.net.state_dict()
    assert all(torch.equal(state[name], value) for name, value in trained.params.items())
    assert not torch.equal(state["0.weight"], sent()["0.weight"])


pytestmark = pytest.mark.filterwarnings("ignore")


# --- the order of calls ----------------------------------------------------------------------------------------------------


def told(value: Any) -> Any:
    """Of an argument, what can be compared."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().tolist()
    if isinstance(value, dict):
        return {key: told(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [told(part) for part in value]
    if isinstance(value, int | float | str | torch.device | None):
        return value
    return "closure" if callable(value) else type(value).__name__


def spying(kind: type[LocalModule]) -> type[LocalModule]:
    """A subclass that notes every call of a hook, with its arguments and where training is."""

    def noted(name: str) -> Callable:
        def hook(self, *args, **kwargs):
            self.calls.append((name, told(args), told(kwargs), self.current_epoch, self.global_step, self.device.type))
            return getattr(super(Spy, self), name)(*args, **kwargs)

        return hook

    class Spy(kind):
        def __init__(self, *args):
            super().__init__(*args)
            self.calls = []

    for name in (*hooks.CALLED, "training_step", "configure_optimizers"):
        setattr(Spy, name, noted(name))
    return Spy


class Scheduled(LocalModule):
    """Two schedules: one by step, one by epoch."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        by_epoch = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        by_step = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
        return [optimizer], [by_epoch, {"scheduler": by_step, "interval": "step", "frequency": 2}]


def test_hooks_are_called_in_lightnings_order_with_lightnings_arguments():
    theirs, ours = (spying(Scheduled)(net(), SGD) for _ in range(2))
    lightning(theirs, gradient_clip_val=0.3)
    trained = federated(ours, Recipe(clip_norm=0.3))
    assert ours.calls == theirs.calls
    assert {name for name, *_ in ours.calls} == {*hooks.CALLED, "training_step", "configure_optimizers"}
    assert_same(theirs, trained)


class Leaving(LocalModule):
    """Leaves out the rest of the second pass, and single batches."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.current_epoch == 1 and batch_idx == 2 else None

    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_batches_and_passes_are_left_out_where_lightning_leaves_them_out():
    theirs, ours = (spying(Leaving)(net(), SGD) for _ in range(2))
    lightning(theirs)
    trained = federated(ours)
    assert ours.calls == theirs.calls
    assert_same(theirs, trained)
    # Of 4 batches of 5, 5, 5 and 3 the second never has a loss; in the second pass only the first one has.
    assert (trained.steps, trained.examples) == (3 + 1 + 3, 13 + 5 + 13)


class Stopping(LocalModule):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.trainer.should_stop = self.global_step == 6


def test_should_stop_ends_the_job_where_it_ends_a_fit():
    theirs, ours = (spying(Stopping)(net(), SGD) for _ in range(2))
    lightning(theirs, min_epochs=0)
    trained = federated(ours)
    assert ours.calls == theirs.calls
    assert trained.steps == 6
    assert_same(theirs, trained)


def test_a_client_without_examples_trains_nothing():
    ours = spying(LocalModule)(net(), SGD)
    trained = fit(ours, Subnet(sent(), {}), [], Recipe(), planned=Planned(0, 0))
    assert [name for name, *_ in ours.calls] == ["setup", "configure_optimizers", "on_fit_start", "on_fit_end", "teardown"]
    assert all(torch.equal(value, trained.params[name]) for name, value in sent().items())


# --- the same weights ------------------------------------------------------------------------------------------------------


class Noisy(LocalModule):
    """Hooks that change gradients, batches, weights, and the rate."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        inputs, labels = batch
        return (inputs * 1.1 if self.trainer.training else inputs), labels

    def on_after_backward(self):
        for parameter in self.net.parameters():
            if parameter.grad is not None:
                parameter.grad.add_(0.01 * parameter.detach().sign())

    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="value")

    def on_before_optimizer_step(self, optimizer):
        self.log("norm", self.net[0].weight.grad.norm())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            self.net[3].weight.clamp_(-0.3, 0.3)

    def on_train_epoch_start(self):
        self.net[0].bias.requires_grad_(self.current_epoch > 0)


class Warm(LocalModule):
    """The documentation's warm-up, and gradients of two batches per step."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        if self.trainer.global_step < 5:
            for group in optimizer.param_groups:
                group["lr"] = 0.2 * (self.trainer.global_step + 1) / 5
        if batch_idx % 2:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if batch_idx % 2 == 0:
            optimizer.zero_grad()


class OneCycle(LocalModule):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=self.trainer.estimated_stepping_batches)
        return [{"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}]

    def lr_scheduler_step(self, scheduler, metric):
        self.rates = [*getattr(self, "rates", []), scheduler.get_last_lr()[0]]
        scheduler.step()


class Steep(LocalModule):
    def backward(self, loss):
        (2 * loss).backward()

    def on_before_zero_grad(self, optimizer):
        self.before = [parameter.grad for parameter in self.net.parameters()]

    def training_step(self, batch):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        return {"loss": loss, "more": 1}


class Newton(LocalModule):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=3)


@pytest.mark.parametrize("kind", [Noisy, Warm, OneCycle, Steep, Newton, Scheduled, SquaredError, LocalModule])
def test_the_same_module_comes_to_the_same_weights_as_under_a_trainer(kind):
    theirs, ours = kind(net(), SGD), kind(net(), SGD)
    lightning(theirs)
    assert_same(theirs, federated(ours))


def test_clipping_by_norm_is_lightnings():
    theirs, ours = Scheduled(net(), SGD), Scheduled(net(), SGD)
    lightning(theirs, gradient_clip_val=0.1)
    assert_same(theirs, federated(ours, Recipe(clip_norm=0.1)))


def test_an_optimizer_that_takes_no_closure_is_served_too():
    class Bare(torch.optim.SGD):
        def step(self):
            super().step()

    class Own(LocalModule):
        def on_after_backward(self):
            pass

    expected = federated(LocalModule(net(), SGD)).params
    found = federated(Own(net(), lambda parameters: Bare(parameters, lr=0.2, momentum=0.5, weight_decay=0.01))).params
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# --- which hooks are a module's own ----------------------------------------------------------------------------------------


class Mixin:
    def on_after_backward(self):
        self.seen = True


class Grandparent(LocalModule):
    def on_train_start(self):
        self.seen = True


class Mixed(Mixin, LocalModule):
    pass


class Grandchild(Grandparent):
    pass


@pytest.mark.parametrize(("kind", "name"), [(Mixed, "on_after_backward"), (Grandchild, "on_train_start")])
def test_mixins_and_grandparents_count(kind, name):
    module = kind(net(), SGD)
    assert hooks.overridden(module) == {name}
    federated(module)
    assert module.seen


def test_a_hook_of_the_instance_counts():
    module, seen = LocalModule(net(), SGD), []
    assert hooks.plain(module)
    module.on_after_backward = lambda: seen.append(1)
    assert not hooks.plain(module)
    federated(module, passes=1)
    assert len(seen) == BATCHES


def test_every_hook_of_lightning_is_called_or_refused_or_a_trainers():
    """What a later Lightning brings has to be put into one of the lists."""
    kinds = (pl.core.hooks.ModelHooks, pl.core.hooks.DataHooks, pl.core.hooks.CheckpointHooks)
    there = {name for kind in kinds for name in vars(kind) if not name.startswith("_")}
    own = {name for name in vars(pl.LightningModule) if name.startswith(("on_", "configure_")) or name.endswith("_step")}
    own -= {"on_gpu", "global_step"}  # properties
    known = {*hooks.CALLED, *hooks.REFUSED, *hooks.TRAINERS, "training_step", "configure_optimizers"}
    assert there | own <= known
    assert all(hasattr(pl.LightningModule, name) for name in known)
    assert len(known) == len(hooks.CALLED) + len(hooks.REFUSED) + len(hooks.TRAINERS) + 2


def test_known_modules_go_the_lean_way(monkeypatch):
    monkeypatch.setattr("fedprune.local.train_with_hooks.train", None)
    for kind in (LocalModule, SquaredError):
        federated(kind(net(), SGD))


# --- what the recipe does, beside hooks --------------------------------------------------------------------------------------


class Quiet(LocalModule):
    """Hooks that change nothing: it goes the way of hooks, and comes to what the lean loop comes to."""

    def on_after_backward(self):
        pass

    def on_train_batch_end(self, outputs, batch, batch_idx):
        pass


def mask(density: float = 0.4) -> Mask:
    torch.manual_seed(3)
    return {name: torch.rand(value.shape) < density for name, value in sent().items() if name in ("0.weight", "3.weight")}


def masked(module: LocalModule, recipe: Recipe, alive: Mask, **more: Any) -> Trained:
    planned = Planned(BATCHES, PASSES * BATCHES)
    return fit(module, Subnet(apply(sent(), alive), alive), data() * PASSES, recipe, planned=planned, **more)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(clip_norm=0.1),
        Recipe(proximal_mu=0.5),
        Recipe(error_feedback=True, proximal_mu=0.5),
        Recipe(freeze_batchnorm=True, retrain_lr=0.5, fixed=["0"], keep_optimizer=True),
    ],
    ids=["plain", "clip", "proximal", "feedback", "the rest"],
)
@pytest.mark.parametrize("optimizer", [SGD, partial(torch.optim.Adam, lr=0.01)], ids=["sgd", "adam"])
def test_hooks_that_change_nothing_change_nothing(recipe, optimizer):
    shift = {name: 0.01 * torch.ones_like(value) for name, value in net().named_parameters()}
    controlled = {"correction": shift} if optimizer is SGD and not recipe.error_feedback else {}
    more = {"penalty": lambda: torch.tensor(0.0), "summed": ("0.weight",), "decay": 0.7, **controlled}
    lean, ours = (masked(kind(net(), optimizer), recipe, mask(), **more) for kind in (LocalModule, Quiet))
    assert ours.optimizer.keys() == lean.optimizer.keys()
    states = [(ours.optimizer[number], state) for number, state in lean.optimizer.items()]
    for found, expected in [(ours.params, lean.params), (ours.gradients, lean.gradients), *states]:
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert (ours.loss, ours.steps, ours.examples, ours.reach) == (lean.loss, lean.steps, lean.examples, lean.reach)


class Waking(LocalModule):
    """Does to weights and gradients whatever may wake the dead, and looks."""

    mask: Mask

    def wake(self):
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.add_(0.1)

    def on_train_epoch_start(self):
        self.wake()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.wake()

    def on_fit_end(self):
        self.wake()

    def training_step(self, batch, batch_idx):
        weights = self.net.state_dict()
        assert not any(weights[name][~alive].any() for name, alive in self.mask.items())
        return super().training_step(batch, batch_idx)

    def on_after_backward(self):
        for name, alive in self.mask.items():
            assert not self.net.get_parameter(name).grad[~alive].any()  # what a norm of gradients would count
            self.net.get_parameter(name).grad.add_(1)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        assert not any(self.net.get_parameter(name).grad[~alive].any() for name, alive in self.mask.items())


def test_the_dead_stay_dead_whatever_hooks_do():
    module = Waking(net(), SGD)
    module.mask = mask()
    trained = masked(module, Recipe(), module.mask)
    assert not any(trained.params[name][~alive].any() for name, alive in module.mask.items())
    assert trained.steps == PASSES * BATCHES


def test_decay_multiplies_the_rate_that_a_schedule_gives_whatever_the_schedule():
    """Of one pass of 4 steps, one-cycle's own rates times 0.5; what the step sees is what moves the weights."""

    class Watched(OneCycle):
        def on_before_optimizer_step(self, optimizer):
            self.seen = [*getattr(self, "seen", []), optimizer.param_groups[0]["lr"]]

    plain, slowed = Watched(net(), SGD), Watched(net(), SGD)
    federated(plain, passes=1)
    federated(slowed, passes=1, decay=0.5)
    assert len({*plain.seen}) == BATCHES
    assert slowed.seen == [0.5 * rate for rate in plain.seen]
    assert slowed.rates == plain.rates  # the schedule itself is not disturbed


def test_a_schedule_begins_anew_in_every_job_though_the_optimizer_goes_on():
    """Plain momentum of 0.5 that is kept moves the weights in the second job, at the first rate of the schedule."""

    class Watched(Scheduled):
        def on_train_start(self):
            self.seen = [*getattr(self, "seen", []), self.optimizers().param_groups[0]["lr"]]

    module, recipe = Watched(net(), SGD), Recipe(keep_optimizer=True)
    kept = federated(module, recipe).optimizer
    assert kept
    again = federated(module, recipe, optimizer_state=kept)
    assert module.seen == [0.2 * 0.1] * 2
    assert not torch.equal(again.params["0.weight"], federated(module, recipe).params["0.weight"])


def test_what_a_hook_freezes_is_trained_again_in_the_next_job():
    class Freezing(LocalModule):
        def on_train_start(self):
            self.freeze()
            self.train()
            self.net[3].requires_grad_(True)

    module = Freezing(net(), SGD)
    trained = federated(module).params
    assert torch.equal(trained["0.weight"], sent()["0.weight"])
    assert not torch.equal(trained["3.weight"], sent()["3.weight"])
    assert all(parameter.requires_grad for parameter in module.parameters())


# --- what a module asks for ------------------------------------------------------------------------------------------------


def test_a_module_finds_its_trainer_in_a_job_and_outside():
    class Asking(LocalModule):
        def __init__(self, *args, width=3):
            super().__init__(*args)
            self.save_hyperparameters("width")

        def training_step(self, batch, batch_idx):
            trainer = self.trainer
            assert (trainer.training, trainer.validating, trainer.max_epochs) == (True, False, PASSES)
            assert (trainer.num_training_batches, trainer.estimated_stepping_batches) == (BATCHES, PASSES * BATCHES)
            assert (self.current_epoch, self.global_step % BATCHES) == divmod(self.global_step, BATCHES)
            assert self.current_epoch == trainer.current_epoch and self.device.type == "cpu" and self.hparams.width == 3
            assert isinstance(self.optimizers(), torch.optim.SGD)
            assert self.optimizers(use_pl_optimizer=False) is trainer.optimizers[0]
            assert self.lr_schedulers() is None and not self.logger and self.global_rank == 0
            assert torch.equal(self.all_gather(batch[0]), batch[0])
            self.print("a batch")
            with self.toggled_optimizer(self.optimizers()):
                return super().training_step(batch, batch_idx)

    module = Asking(net(), SGD)
    expected = federated(LocalModule(net(), SGD)).params
    assert all(torch.equal(federated(module).params[name], value) for name, value in expected.items())
    module.eval()
    assert (module.trainer.training, module.trainer.validating, module.current_epoch) == (False, True, 0)
    assert not hasattr(module.trainer, "fit_loop")
    with pytest.raises(AttributeError, match=r"self.trainer.fit_loop: there is no pl.Trainer in the federated loop"):
        _ = module.trainer.fit_loop


def test_forward_hooks_of_a_network_are_called_and_gradients_hooks_too():
    module, seen = LocalModule(net(), SGD), []
    module.net[0].register_forward_hook(lambda *_: seen.append("forward"))
    module.net[0].weight.register_hook(lambda _: seen.append("gradient"))
    federated(module, passes=1)
    assert seen == ["forward", "gradient"] * BATCHES


def test_a_metric_forgets_the_client_before():
    class Counting(LocalModule):
        def __init__(self, *args):
            super().__init__(*args)
            self.mean = MeanMetric()

        def training_step(self, batch, batch_idx):
            self.mean(batch_idx)
            self.log("mean", self.mean)
            return super().training_step(batch, batch_idx)

    module = Counting(net(), SGD)
    for _ in range(2):
        assert federated(module, passes=1).logged == {"mean": ("mean", 1.5)}  # of 0, 1, 2 and 3


# --- beside fit ------------------------------------------------------------------------------------------------------------


def test_a_plain_modules_schedule_and_its_closure_are_served_too():
    """They may come from local.optimizer, whatever the module."""

    def halving(parameters):
        optimizer = SGD(parameters)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    for optimizer in (halving, partial(torch.optim.LBFGS, lr=0.5, max_iter=3)):
        theirs, ours = LocalModule(net(), optimizer), LocalModule(net(), optimizer)
        lightning(theirs)
        assert_same(theirs, federated(ours))


def test_evidence_is_measured_by_a_training_step_in_any_form():
    batch, names = data()[0], ("0.weight",)
    module, params = Steep(net(), SGD), sent()
    module.training_step(batch)
    for measure in (grads, movement):
        about = names if measure is grads else {name: torch.ones_like(params[name], dtype=torch.bool) for name in names}
        expected = measure(LocalModule(net(), SGD), params, about, [batch])
        assert torch.equal(measure(module, params, about, [batch])["0.weight"], expected["0.weight"])
    left_out = LocalModule(net(), SGD)
    left_out.training_step = lambda batch, batch_idx: None
    with pytest.raises(RunError, match="left out a batch .* that evidence was to be measured on: .*criterion=magnitude"):
        grads(left_out, params, names, [batch])
