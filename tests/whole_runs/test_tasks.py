"""Tasks that are no classification, whole runs of them: labels are what the data set says, metrics have the names that the task
gives them, and whoever asks for accuracy or for classes where there are none is told what to type."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from torch import nn
from torchmetrics import R2Score
from torchmetrics.classification import BinaryAUROC, MulticlassJaccardIndex

from fedprune.data.datasets import Dataset
from fedprune.errors import ConfigError
from fedprune.execution import employed
from fedprune.experiment.build import build
from fedprune.experiment.experiment import Experiment
from fedprune.federated import evaluate
from fedprune.local.module import LocalModule
from helpers.composed import TINY, assemble

HERE = __name__
LEARNS = ("local.optimizer.lr=0.1", "rounds=12", "local.epochs=2", "local.steps=null", "eval_every=12")


def numbers(root: str = "", targets: int = 1, kind: str = "float32") -> Dataset:
    """A regression that a linear network solves: y = 0.5 x0 - 0.25 x1 of float inputs in [-1, 1], 160 examples; with several
    targets, these times 1, 2, ..."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(200, 2, 1, 1, generator=rng) * 2 - 1
    y = 0.5 * x[:, 0, 0, 0] - 0.25 * x[:, 1, 0, 0]
    y = (y if targets == 1 else y[:, None] * torch.arange(1, targets + 1)).to(getattr(torch, kind))
    return Dataset("numbers", x[:160], y[:160], x[160:], y[160:], targets)


def labels(root: str = "", kind: str = "float32") -> Dataset:
    """Three labels, each there if its input is positive."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(200, 3, 1, 1, generator=rng) * 2 - 1
    y = (x[:, :, 0, 0] > 0.2).to(getattr(torch, kind))
    return Dataset("labels", x[:160], y[:160], x[160:], y[160:], 3)


def pixels(root: str = "") -> Dataset:
    """A class at every pixel of an image: 0, 1 or 2, by how bright it is."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (60, 1, 4, 4), generator=rng, dtype=torch.uint8)
    return Dataset("pixels", x[:48], x[:48, 0].clone(), x[48:], x[48:, 0].clone(), 3)


def digits_with(root: str = "", label: int = 0, where: str = "y") -> Dataset:
    """Four classes, and one label that is none of them."""
    x, y = torch.zeros(80, 1, 2, 2, dtype=torch.uint8), torch.arange(80) % 4
    parts = {"y": y.clone(), "test_y": y[:8].clone()}
    parts[where][3] = label
    return Dataset("four", x, parts["y"], x[:8].clone(), parts["test_y"], 4, (0.0,), (1.0,))


def linear(shape, classes) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))


def per_pixel(shape, classes) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, classes, 1))


def of_two(shape, classes) -> nn.Module:
    return linear(shape, 2)


class Segmentation(LocalModule):
    """Classes at pixels, judged by the mean intersection over union."""

    metric = "iou"

    def __init__(self, net, optimizer):
        super().__init__(net, optimizer)
        self.iou = MulticlassJaccardIndex(num_classes=3)

    def outcome(self, batch):
        images, classes = batch
        logits = self.net(images)
        self.iou.update(logits.argmax(1), classes)
        return {"loss": self.loss(logits, classes, "none"), "iou": self.iou}


class Ranked(LocalModule):
    """One output that ranks, judged by the area under the ROC curve; and R2, which takes two examples."""

    metric = "auroc"

    def __init__(self, net, optimizer):
        super().__init__(net, optimizer)
        self.auroc, self.r2 = BinaryAUROC(), R2Score()

    def loss(self, outputs, labels, reduction):
        return nn.functional.mse_loss(outputs[:, 0], labels, reduction=reduction)

    def outcome(self, batch):
        inputs, targets = batch
        outputs = self.net(inputs)
        self.auroc.update(outputs[:, 0].sigmoid(), (targets > 0).long())
        self.r2.update(outputs[:, 0], targets)
        return {"loss": self.loss(outputs, targets, "none"), "auroc": self.auroc, "r2": self.r2}


class Old(LocalModule):
    """As it was done before metrics had names: a regression that says which predictions are near enough."""

    def loss(self, outputs, labels, reduction):
        return nn.functional.mse_loss(outputs[:, 0], labels, reduction=reduction)

    def outcome(self, batch):
        inputs, targets = batch
        outputs = self.net(inputs)
        return self.loss(outputs, targets, "none"), (outputs[:, 0] - targets).abs() < 0.1


def task(data: str, *overrides: str, model: str | None = "linear", module: str | None = None, **more) -> Experiment:
    """A tiny run of one of the tasks above."""
    config, names = assemble(*TINY, "partition.min_examples=4", *overrides)
    config.data = {"_target_": f"{HERE}.{data}", **more}
    if model:
        config.model = {"_target_": f"{HERE}.{model}"}
    if module:
        config.local.module = {"_target_": f"{HERE}.{module}"}
    return build(config, names)


def played(experiment: Experiment):
    """The state at the end, and the last round's metrics, times left out."""
    with employed(experiment.executor()) as executor:
        loop = experiment.loop(executor)
        state = loop.start()
        while state.round < experiment.plan.rounds:
            state, metrics = loop.round(state)
    return state, {name: value for name, value in metrics.items() if not name.startswith("time/")}


def outputs(experiment: Experiment, state, x: torch.Tensor) -> torch.Tensor:
    net = experiment.net
    net.load_state_dict(state.server.params)
    with torch.no_grad():
        return net.eval()(experiment.dataset.normalise(x))


@pytest.mark.parametrize("kind", ["float32", "float64", "float16"])
def test_a_regression_learns_its_real_targets(kind):
    """Forced to integers, all these targets are 0: the network learned 0, and its loss was said to be 0.0005. To predict 0
    costs the mean of y^2, (0.25 + 0.0625) / 3 = 0.104 for inputs that are uniform on [-1, 1]."""
    experiment = task("numbers", *LEARNS, "local=regression", kind=kind)
    data = experiment.dataset
    state, metrics = played(experiment)
    errors = outputs(experiment, state, data.test_x)[:, 0] - data.test_y.float()
    assert data.test_y.float().square().mean() == pytest.approx(0.104, abs=0.02)
    assert metrics["test/mse"] == metrics["test/loss"] == pytest.approx(float(errors.square().mean()), rel=1e-3, abs=1e-7)
    assert metrics["test/mae"] == pytest.approx(float(errors.abs().mean()), rel=1e-3, abs=1e-6)
    assert metrics["test/mse"] < 0.005
    weight = next(value for name, value in state.server.params.items() if name.endswith("weight"))
    assert weight[0].tolist() == pytest.approx([0.5, -0.25], abs=0.1)
    assert not [name for name in metrics if "accuracy" in name]


def test_what_is_better_smaller_is_worst_at_its_largest_on_clients():
    experiment = task("numbers", "local=regression", "rounds=1", "eval_every=1")
    state, metrics = played(experiment)
    data, clients = experiment.dataset, experiment.clients
    mse, mae = [], []
    for part in clients.test:
        errors = outputs(experiment, state, data.x[part])[:, 0] - data.y[part]
        mse.append(float(errors.square().mean()))
        mae.append(float(errors.abs().mean()))
    assert metrics["client/mse_mean"] == pytest.approx(np.mean(mse))
    assert metrics["client/mse_p90"] == pytest.approx(np.percentile(mse, 90))
    assert metrics["client/mse_max"] == pytest.approx(max(mse))
    assert metrics["client/mae_mean"] == pytest.approx(np.mean(mae))
    assert {name for name in metrics if name.startswith("client/")} == {
        *("client/mse_mean", "client/mse_p90", "client/mse_max", "client/mae_mean")
    }


def test_several_targets_are_one_example():
    experiment = task("numbers", *LEARNS, "local=regression", targets=2)
    state, metrics = played(experiment)
    errors = outputs(experiment, state, experiment.dataset.test_x) - experiment.dataset.test_y
    assert metrics["test/mse"] == pytest.approx(float(errors.square().mean()), rel=1e-4) and metrics["test/mse"] < 0.05


@pytest.mark.parametrize("kind", ["float32", "uint8", "bool"])
def test_several_labels_of_an_example_have_an_f1_over_all_examples(kind):
    """F1 is no mean over examples: that of all together is worked out by scikit-learn."""
    experiment = task("labels", *LEARNS, "local=multilabel", "local.optimizer.lr=1.0", kind=kind)
    data = experiment.dataset
    state, metrics = played(experiment)
    there = (outputs(experiment, state, data.test_x) > 0).numpy()
    truth = data.test_y.bool().numpy()
    assert metrics["test/f1"] == pytest.approx(f1_score(truth, there, average="micro"), abs=1e-6)
    assert metrics["test/accuracy"] == pytest.approx((truth == there).mean(), abs=1e-6)
    each = []
    for part in experiment.clients.test:
        found = (outputs(experiment, state, data.x[part]) > 0).numpy()
        each.append(f1_score(data.y[part].bool().numpy(), found, average="micro", zero_division=0))
    assert metrics["client/f1_mean"] == pytest.approx(np.mean(each), abs=1e-6)
    assert metrics["client/f1_min"] == pytest.approx(min(each), abs=1e-6)
    assert metrics["test/f1"] > 0.6


def test_classes_at_every_pixel_have_an_intersection_over_union():
    experiment = task("pixels", *LEARNS, "partition.min_examples=3", model="per_pixel", module="Segmentation")
    state, metrics = played(experiment)
    data = experiment.dataset
    found = outputs(experiment, state, data.test_x).argmax(1).flatten()
    assert metrics["test/iou"] == pytest.approx(jaccard_score(data.test_y.flatten(), found, average="macro"), abs=1e-6)
    assert 0.3 < metrics["test/iou"] <= 1 and "client/iou_p10" in metrics


def test_classes_at_every_pixel_are_classification_too():
    metrics = played(task("pixels", *LEARNS, model="per_pixel"))[1]
    assert metrics["test/accuracy"] > 0.6


@pytest.mark.parametrize(("data", "more"), [("labels", {"words": ("local=multilabel",)}), ("numbers", {"module": "Ranked"})])
def test_metrics_are_the_same_with_one_worker_and_with_three_and_for_slices_of_any_client(data, more, monkeypatch):
    """Slices of 7 examples end in the middle of clients; what clients come to does not depend on that."""
    words = more.pop("words", ())
    single = played(task(data, *words, **more))[1]
    monkeypatch.setattr(evaluate, "LENGTH", 7)
    cut = played(task(data, *words, **more))[1]
    spread = played(task(data, *words, "executor=processes", "executor.workers=3", **more))[1]
    assert spread == cut
    assert cut == pytest.approx(single, rel=1e-6)


def test_a_metric_that_a_client_has_too_few_examples_for_is_the_mean_over_the_others():
    """R2 takes two examples. With four clients of 40 examples, a test part of a 40th is one example of each."""
    experiment = task("numbers", "partition.test=0.025", module="Ranked")
    metrics = played(experiment)[1]
    assert [len(part) for part in experiment.clients.test] == [1] * 4
    assert "client/r2_mean" not in metrics and "test/r2" in metrics and "client/auroc_mean" in metrics


def test_a_pair_is_loss_and_accuracy_as_it_was_and_labels_are_real():
    experiment = task("numbers", *LEARNS, module="Old")
    state, metrics = played(experiment)
    data = experiment.dataset
    near = (outputs(experiment, state, data.test_x)[:, 0] - data.test_y).abs() < 0.1
    assert metrics["test/accuracy"] == pytest.approx(float(near.float().mean())) and metrics["test/accuracy"] > 0.5
    assert {"client/accuracy_mean", "client/accuracy_p10", "client/accuracy_min"} <= set(metrics)


@pytest.mark.parametrize("whose", [(), ("whose=personal", "whose.at=end")])
def test_a_gate_waits_for_the_tasks_own_metric(whose):
    """Before anything is learned mse is about 0.1: it opens later, and not in the first rounds."""
    words = (*LEARNS, *whose, "local=regression", "how_often=stepwise", "when=once_accurate", "when.accuracy=null")
    experiment = task("numbers", *words, "when.at_most=0.02", "when.stop=1.0", "density=0.5", "how_often.rate=0.5")
    rounds = []
    with employed(experiment.executor()) as executor:
        loop = experiment.loop(executor)
        state = loop.start()
        for _ in range(12):
            state, metrics = loop.round(state)
            rounds.append((metrics.get("gate/val_metric"), state.opened, state.events, metrics["density/weights"]))
    if not whose:
        asked = [(value, opened) for value, opened, events, _ in rounds if value is not None and not events]
        assert asked[0][0] > 0.02 and asked[-1][0] <= 0.02
        assert all(opened == (value <= 0.02) for value, opened in asked)
    assert rounds[0][3] == 1 and rounds[-1][3] < 1


def test_a_gate_on_a_moving_mask_takes_the_tasks_own_metric():
    words = ("whose=personal", "whose.at=end", "how_often=stepwise", "when=once_moving", "when.shift=0.0", "density=0.5")
    words = (*words, "when.accuracy=null", "local=regression", "local.epochs=2", "local.steps=null", "how_often.rate=0.5")
    shut = played(task("numbers", *words, "when.at_most=0.0", "rounds=6", model=None))[0]  # of two weights no mask moves
    assert not any(own.events for own in shut.personal.values())
    open_ = played(task("numbers", *words, "when.at_most=9.0", "rounds=6", model=None))[0]
    assert any(own.events for own in open_.personal.values())


@pytest.mark.parametrize("when", [("once_accurate",), ("once_moving", "whose=personal", "whose.at=end")])
def test_a_gate_on_accuracy_is_refused_where_there_is_none(when):
    words = ("local=regression", "how_often=one_shot", "density=0.5", f"when={when[0]}", *when[1:])
    with pytest.raises(ConfigError) as refused:
        task("numbers", *words)
    message = str(refused.value)
    assert f"when={when[0]} asks for accuracy, and local=regression measures loss, mse, mae" in message
    assert "set when.accuracy=null when.at_most=0.5" in message
    assert task("numbers", *words, "when.accuracy=null", "when.at_most=0.5")  # what it says to type
    with pytest.raises(ConfigError, match=r"smaller is better.*set when.at_least=null when.at_most=0.5"):
        task("numbers", *words, "when.accuracy=null", "when.at_least=0.5")
    with pytest.raises(ConfigError, match="set when.accuracy=null"):
        task("numbers", *words, "when.at_least=0.5")
    with pytest.raises(ConfigError, match="when.at_least=null and when.at_most=null: set one of them"):
        task("numbers", *words, "when.accuracy=null")


@pytest.mark.parametrize(
    ("label", "where"), [(4, "y"), (-1, "y"), (-100, "test_y"), (7, "test_y")]
)  # torch: IndexError, in the middle of a run
def test_a_label_that_is_no_class_is_refused_before_the_run(label, where):
    with pytest.raises(
        ConfigError, match=rf"there is a label {label} in {where}, and the network's 4 outputs stand for 0 to 3"
    ):
        task("digits_with", label=label, where=where)
    assert played(task("digits_with", label=2, where=where))


def test_a_network_with_fewer_outputs_than_labels_is_refused():
    with pytest.raises(ConfigError, match=r"label 2 in y, and the network's 2 outputs .*says classes=4"):
        task("digits_with", model="of_two", label=1)


@pytest.mark.parametrize(
    ("data", "words", "message"),
    [
        ("numbers", (), r"local=classification takes classes.*real numbers \(float32, such as .*choose local=regression"),
        ("numbers", ("local=squared_error",), "local=squared_error takes classes.*choose local=regression"),
        ("labels", (), "choose local=regression for real numbers or local=multilabel"),
        ("labels", ("local=regression", "criterion=fisher_true"), "choose criterion=fisher_empirical"),
        ("numbers", ("local=regression", "local/dropout=ordered_distilled"), "choose local/dropout=ordered"),
        ("numbers", ("local=regression", "whose=nested", "whose.labels=own", "what.skip=[]"), "set whose.labels=all"),
        ("numbers", ("local=regression", "partition=dirichlet"), "choose partition=iid"),
        ("pixels", ("local=regression",), r"Regression.outcome \(model=lenet_300_100\) cannot take examples of data=pixels"),
    ],
)
def test_what_takes_classes_is_refused_where_there_are_none(data, words, message):
    pruning = ("how_often=one_shot", "when=before_training")
    with pytest.raises(ConfigError, match=message):
        task(data, *pruning, *words)


class Bad(LocalModule):
    """What an outcome may not be, by `kind`."""

    def __init__(self, net, optimizer, kind):
        super().__init__(net, optimizer)
        self.kind, self.auroc, self.iou = kind, BinaryAUROC(), MulticlassJaccardIndex(3, average="none")

    def outcome(self, batch):
        loss, correct = super().outcome(batch)
        self.iou.update(batch[1] * 0, batch[1] * 0)
        found = {
            "no_loss": {"accuracy": correct},
            "no_metric": {"loss": loss, "f1": correct},
            "a_mean": {"loss": loss, "accuracy": correct.float().mean()},
            "not_held": {"loss": loss, "accuracy": BinaryAUROC()},
            "several": {"loss": loss, "accuracy": self.iou},
            "a_name": {"loss": loss, "accuracy": correct, "a/b": correct},
            "a_number": {"loss": loss, "accuracy": 0.5},
        }
        return found[self.kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no_loss", "its outcome gives accuracy and no loss: add 'loss'"),
        ("no_metric", "metric = 'accuracy', and its outcome gives loss, f1: set the attribute `metric` to one of these"),
        ("a_mean", r"accuracy is of shape \[\] for 2 examples: give one number for each"),
        ("not_held", r"accuracy is a torchmetrics object that it does not hold: make it in __init__ \(self.accuracy = ...\)"),
        ("several", "comes to more than one number: set its average"),
        ("a_name", "a metric cannot be called 'a/b'"),
        ("a_number", "accuracy is a float: give a real tensor"),
    ],
)
def test_an_outcome_that_is_none_is_refused_before_the_run(kind, message):
    config, names = assemble(*TINY)
    config.local.module = {"_target_": f"{HERE}.Bad", "kind": kind}
    with pytest.raises(ConfigError, match=message):
        build(config, names)


class Wrong(Segmentation):
    larger_is_better = False


class WrongLoss(LocalModule):
    metric = "loss"


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        (
            "pixels",
            {"model": "per_pixel", "module": "Wrong"},
            "larger_is_better = False, and of iou .* set larger_is_better = True",
        ),
        (
            "digits_with",
            {"module": "WrongLoss"},
            "larger_is_better = True, and of loss that is not so: set larger_is_better = False",
        ),
    ],
)
def test_which_way_is_better_is_not_mistaken(data, more, message):
    with pytest.raises(ConfigError, match=message):
        task(data, **more)


def test_a_task_whose_own_metric_is_its_loss_has_it_of_clients_too():
    WrongLoss.larger_is_better = False
    try:
        metrics = played(task("digits_with", module="WrongLoss"))[1]
    finally:
        del WrongLoss.larger_is_better
    assert {"client/loss_mean", "client/loss_p90", "client/loss_max", "client/accuracy_mean"} <= set(metrics)


def nan_or_mismatched(root: str = "", what: str = "") -> Dataset:
    x, y = torch.zeros(40, 2, 1, 1), torch.zeros(40, dtype=torch.int64)
    good = {"x": x, "y": y, "test_x": x[:4], "test_y": y[:4], "mean": (0.0,), "std": (1.0,)}
    bad = {
        "fewer_labels": {"y": y[:39]},
        "other_test": {"test_y": torch.zeros(4)},
        "means": {"mean": (0.0, 0.0, 0.0)},
    }
    return Dataset("mine", classes=2, **(good | bad[what]))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fewer_labels", "data=mine has 40 examples and 39 labels"),
        ("other_test", r"labels are int64 \[N\] to train on and float32 \[N\] to test on"),
        ("means", "data=mine has a mean of 3 numbers for 2 channels"),
    ],
)
def test_a_data_set_whose_parts_do_not_fit_is_refused(what, message):
    with pytest.raises(ConfigError, match=message):
        task("nan_or_mismatched", what=what)


@pytest.mark.parametrize(("data", "local"), [("numbers", "regression"), ("labels", "multilabel")])
def test_built_in_tasks_train_in_one_batched_model_and_in_smaller_networks(data, local, caplog):
    """The same up to the rounding of sums: their training step is that of classification, with another loss."""
    words = (f"local={local}", "what=neurons_per_layer", "what.skip=[last]", "how_often=one_shot", "when=before_training")
    words = (*words, "density=0.1", "local.steps=20")
    usual = played(task(data, *words, "local.compact=never", model=None))[1]
    for others in (("executor=batched", "local.compact=never"), ("local.compact=auto",)):
        metrics = played(task(data, *words, *others, model=None))[1]
        assert metrics["train/loss"] == pytest.approx(usual["train/loss"], rel=1e-3)
        assert metrics["test/loss"] == pytest.approx(usual["test/loss"], rel=1e-3)
    assert "one after the other" not in caplog.text


@pytest.mark.parametrize("criterion", ["snip", "fisher_empirical", "obd_gauss_newton", "obd_exact", "obd_sweep", "woodfisher"])
@pytest.mark.parametrize(("data", "local"), [("numbers", "regression"), ("labels", "multilabel")])
def test_evidence_is_measured_on_real_labels(data, local, criterion):
    words = (f"local={local}", f"criterion={criterion}", "how_often=one_shot", "when=before_training", "what.skip=[]")
    state, metrics = played(task(data, *words, "rounds=1", "density=0.5", "eval_every=1"))
    assert metrics["density/weights"] == pytest.approx(0.5, abs=0.1) and np.isfinite(metrics["test/loss"])
    assert sum(int(alive.sum()) for alive in state.server.mask.values()) == sum(
        m.numel() for m in state.server.mask.values()
    ) // 2 + (data == "labels")
