"""What modules of one's own log reaches the metrics of a run; and what cannot be trained is refused when it is built."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from fedprune.errors import ConfigError, Incompatible
from fedprune.execution import employed
from fedprune.experiment.experiment import Experiment
from fedprune.local.lightning.self_log import LOSS, OURS, OURS_BELOW
from fedprune.local.module import LocalModule

HERE = f"local.module._target_={__name__}."


class Logging(LocalModule):
    """Logs in a step, in hooks, from a dictionary, and with torchmetrics."""

    def __init__(self, net, optimizer, scale: float = 2.0):
        super().__init__(net, optimizer)
        self.save_hyperparameters("scale")
        self.seen = MeanMetric()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train/twice", self.hparams.scale * loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log_dict({"most": loss, "least": -loss}, reduce_fx="max")
        self.log("examples", float(len(batch[0])), reduce_fx="sum")
        self.log("nowhere", loss, logger=False)
        self.seen(loss.detach(), len(batch[0]))
        self.log("metric", self.seen)
        return loss

    def on_train_epoch_end(self):
        self.log("steps", float(self.global_step))


def rounds(experiment: Experiment, number: int = 2) -> list[dict[str, float]]:
    """The metrics of the first rounds, without times."""
    found = []
    with employed(experiment.executor()) as workers:
        loop = experiment.loop(workers)
        state = loop.start()
        for _ in range(number):
            state, metrics = loop.round(state)
            found.append({name: value for name, value in metrics.items() if not name.startswith("time/")})
    return found


def test_what_is_logged_is_a_metric_of_the_round(tiny):
    for metrics in rounds(tiny(f"{HERE}Logging", "partition=dirichlet", "local.epochs=2", "local.steps=null")):
        assert metrics["train/twice"] == pytest.approx(2 * metrics["train/loss"], rel=1e-6)
        assert metrics["metric"] == pytest.approx(metrics["train/loss"], rel=1e-6)
        assert metrics["examples"] == metrics["train/examples"]
        assert metrics["most"] > metrics["train/loss"] > -metrics["least"]
        assert "nowhere" not in metrics
        assert metrics["steps"] > 0


def test_every_executor_brings_the_same_and_training_is_what_it_was_without(tiny):
    base = ("what=weights_global", "how_often=one_shot", "when=before_training")
    alone = rounds(tiny(*base, f"{HERE}Logging"))
    for executor in ("processes", "batched"):
        more = ("executor.workers=2",) if executor == "processes" else ()
        experiment = tiny(*base, f"{HERE}Logging", f"executor={executor}", *more)
        assert rounds(experiment) == alone
    plain = rounds(tiny(*base))
    own = {"train/twice", "metric", "examples", "most", "least", "steps"}
    for with_logs, without in zip(alone, plain, strict=True):
        bytes_more = {name for name in without if name.startswith("wire/")}
        assert {n: v for n, v in with_logs.items() if n not in own | bytes_more} == {
            n: v for n, v in without.items() if n not in bytes_more
        }
        assert with_logs["wire/up_bytes"] > without["wire/up_bytes"]  # what is logged travels, and is counted
        assert with_logs["wire/down_bytes"] == without["wire/down_bytes"]


def test_no_metric_of_a_run_can_be_logged_over(tiny):
    """Whatever a run reports is among the names that are refused, or is the loss."""
    metrics = rounds(tiny("eval_every=1", "how_often=one_shot", "when=before_training"))[0]
    assert all(name in (*OURS, LOSS) or name.startswith(OURS_BELOW) for name in metrics)


class Colliding(LocalModule):
    def on_train_epoch_end(self):
        self.log("test/accuracy", 1.0)


class Failing(LocalModule):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1][:-1])


class Manual(LocalModule):
    def __init__(self, *args):
        super().__init__(*args)
        self.automatic_optimization = False


class Outer(LocalModule):
    def __init__(self, net, optimizer):
        super().__init__(net, optimizer)
        self.head = nn.Linear(2, 2)


class Normalising(LocalModule):
    def forward(self, inputs):
        return self.net(inputs / 2)


class Loading(LocalModule):
    def train_dataloader(self):
        return []

    def configure_callbacks(self):
        return []


class Asking(LocalModule):
    def on_train_start(self):
        self.trainer.train_dataloader  # noqa: B018


class Unclosed(LocalModule):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        pass


class Logger(LocalModule):
    def on_after_backward(self):
        self.logger.experiment.add_scalar("x", 1)


class Several(LocalModule):
    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1], "none")


class Forgetful(LocalModule):
    def training_step(self, batch, batch_idx):
        self.loss(self.net(batch[0]), batch[1], "mean")


class Waiting(LocalModule):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 0 else super().training_step(batch, batch_idx)


def test_a_module_may_leave_out_its_first_batch(tiny):
    tiny(f"{HERE}Waiting")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Forgetful, r"Forgetful trains nothing: its training_step returned None, .* for all 9 that it was tried on: return"),
        (Colliding, r"self.log\('test/accuracy'\): test/\* are names of metrics of the run itself.*'train/my_accuracy'"),
        (Failing, r"Failing: its first step, on examples of client 0, fails: ValueError: .*test_logged_runs|functional"),
        (Manual, "automatic_optimization=False.*override backward or optimizer_step"),
        (Outer, r"parameters outside of its network.*head.weight, head.bias; put them into the network"),
        (Normalising, "overrides forward, which evaluation does not ask .*override outcome, too"),
        (Loading, "overrides train_dataloader: examples come from the option of data"),
        (Loading, "overrides configure_callbacks: there are no callbacks: write them as hooks of the module"),
        (Asking, r"self.trainer.train_dataloader: there is no pl.Trainer in the federated loop. A job has .*current_epoch"),
        (Unclosed, "optimizer_step has not called its optimizer_closure"),
        (Logger, "self.logger.experiment: clients have no logger; self.log and self.log_dict reach metrics.jsonl"),
        (Several, r"training_step returned a tensor of shape \(16,\): return the mean loss"),
    ],
)
def test_what_cannot_be_trained_is_refused_when_the_run_is_built(tiny, kind, message):
    with pytest.raises(ConfigError, match=message):
        tiny(f"{HERE}{kind.__name__}")


class Validating(LocalModule):
    def on_validation_epoch_end(self):
        raise AssertionError("nobody validates here")


def test_what_only_a_trainer_calls_is_said_once_and_not_called(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        rounds(tiny(f"{HERE}Validating", "eval_every=1"), number=1)
    assert [r.getMessage() for r in caplog.records if "Trainer" in r.getMessage()] == [
        "on_validation_epoch_end of Validating: called under a pl.Trainer only; clients are evaluated by outcome"
    ]


class Halving(LocalModule):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


def test_scaffold_refuses_a_rate_that_changes_within_a_round(tiny):
    with pytest.raises(Incompatible, match=r"scaffold divides by the one learning rate.*Halving has ExponentialLR"):
        tiny(f"{HERE}Halving", "federated=scaffold")


class Newton(LocalModule):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.net.parameters(), lr=0.5, max_iter=2)


def test_movement_is_not_measured_over_steps_that_evaluate_the_loss_themselves(tiny):
    words = ("how_often=one_shot", "when=before_training")
    with pytest.raises(Incompatible, match="LBFGS evaluates the loss several times: choose criterion=magnitude"):
        tiny(f"{HERE}Newton", "criterion=movement", *words)
    assert rounds(tiny(f"{HERE}Newton", "criterion=magnitude", *words))[1]["train/steps"] == 6  # 2 clients, 3 batches


class Augmenting(LocalModule):
    """Its networks see inputs 2 x, in training, evaluation and evidence."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return 2 * batch[0], batch[1]


class Twice(LocalModule):
    """The same, written into the step."""

    def training_step(self, batch, batch_idx):
        return super().training_step((2 * batch[0], batch[1]), batch_idx)

    def outcome(self, batch):
        return super().outcome((2 * batch[0], batch[1]))


def test_batches_are_transferred_for_training_evaluation_and_evidence_alike(tiny):
    words = ("criterion=snip", "how_often=one_shot", "when=before_training", "eval_every=1", "where=cohort")
    assert rounds(tiny(f"{HERE}Augmenting", *words)) == rounds(tiny(f"{HERE}Twice", *words))


def test_metrics_jsonl_and_the_summary_have_it(command, folder):
    words = ("rounds=1", "federated.clients=2", "federated.cohort=2", "partition=iid", "executor=serial", "logger=none")
    result = command(*words, f"{HERE}Logging")
    assert result.rc == 0, result.text
    row = json.loads((folder() / "metrics.jsonl").read_text())
    assert row["train/twice"] == pytest.approx(2 * row["train/loss"])
    assert json.loads((folder() / "summary.json").read_text())["metrics"]["train/twice"] == row["train/twice"]
