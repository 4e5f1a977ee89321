"""Deletion curves: what they measure is what deleting does, and what they predict is what the formula says."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from fedprune.config import CONF
from fedprune.errors import ConfigError, DataError, Incompatible
from fedprune.pruning.criterion import Criterion, magnitude
from fedprune.pruning.evidence import needs
from fedprune.sensitivity.__main__ import criterion, densities, main
from fedprune.sensitivity.deletion_curves import ALL, PREDICTIONS, curves, trained
from fedprune.storage.checkpoint import load_state

SHORT = ("rounds=4", "federated=centralized", "partition=iid", "logger=none", "executor=serial", "name=short", "eval_every=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory, perform) -> Path:
    """The folder of a finished dense run."""
    home = tmp_path_factory.mktemp("home")
    assert perform(home, *SHORT).rc == 0
    (folder,) = (home / "outputs" / "short").iterdir()
    return folder


@pytest.fixture(scope="module")
def rows(run) -> pd.DataFrame:
    criteria = {name: criterion(name, [Path("conf")]) for name in ("magnitude", "obd_gauss_newton", "random")}
    return pd.DataFrame(curves(trained(run), criteria, (0.9, 0.5, 0.1), by_layer=False))


def test_magnitude_deletes_the_smallest_and_the_loss_is_that_of_what_is_left(run, rows):
    """By hand: the threshold by sorting all weights, the loss by one pass over the training part."""
    whole = trained(run)
    params = load_state(run / "state" / "state.safetensors").server.params
    weights = [name for name in params if name.endswith("weight")]
    values = torch.cat([params[name].abs().flatten() for name in weights]).sort().values
    data, indices = whole.experiment.dataset, whole.experiment.clients.train[0]
    x, y = data.normalise(data.x[indices]), data.y[indices]
    losses = {}
    for density in (1.0, 0.9, 0.5, 0.1):
        least = values[len(values) - round(density * len(values))]
        whole.experiment.net.load_state_dict({n: v * (v.abs() >= least) if n in weights else v for n, v in params.items()})
        losses[density] = F.cross_entropy(whole.experiment.net(x), y).item()
    found = rows[rows["criterion"] == "magnitude"].set_index("density")
    for density, loss in losses.items():
        assert found.loc[density, "train/loss"] == pytest.approx(loss, rel=1e-5)
        assert found.loc[density, "increase"] == pytest.approx(loss - losses[1.0], abs=1e-5)
    assert found.loc[0.5, "entries"] == round(0.5 * len(values))


def test_the_prediction_is_the_sum_of_the_saliencies_and_only_curvature_predicts(rows):
    predicted = rows.set_index(["criterion", "density"])["predicted"]
    growing = [predicted["obd_gauss_newton", density] for density in (1.0, 0.9, 0.5, 0.1)]
    assert growing[0] == 0 and growing == sorted(growing) and growing[-1] > 0
    assert predicted["magnitude"].drop(1.0).isna().all() and predicted["random"].drop(1.0).isna().all()


def test_small_deletions_are_predicted_and_chance_is_worse_than_magnitude(rows):
    found = rows.set_index(["criterion", "density"])
    assert found.loc[("random", 0.5), "increase"] > found.loc[("magnitude", 0.5), "increase"] > 0
    tenth = found.loc[("obd_gauss_newton", 0.9)]
    assert abs(tenth["increase"] - tenth["predicted"]) < 0.01


def test_a_layer_by_itself_leaves_the_others_as_they_are(run):
    whole = trained(run)
    found = pd.DataFrame(curves(whole, {"magnitude": Criterion(magnitude)}, (0.5,), by_layer=True))
    assert list(found["layer"].unique()) == ["fc1", "fc2", "fc3"]
    sizes = {name: whole.state.server.mask[f"{name}.weight"].numel() for name in ("fc1", "fc2", "fc3")}
    for layer, cell in found[found["density"] == 0.5].groupby("layer"):
        assert cell["entries"].item() == sum(sizes.values()) - sizes[layer] // 2
    assert ALL not in set(found["layer"])


def test_every_prediction_is_a_criterion_from_curvature():
    for name in PREDICTIONS:
        (evidence,) = set(needs(criterion(name, [Path("conf")]).drop)) - {"params", "grads"}
        assert evidence in {"hessian_diag", "hessian_sweep", "gauss_newton_diag", "sq_grads", "sq_grads_sampled",
                            "fisher_inverse_diag"}  # fmt: skip


def test_the_command_writes_a_table_and_a_figure(run, tmp_path, monkeypatch, capsys):
    words = [str(run), "--criterion", "magnitude,obd_sweep", "--density", "0.8,0.2", "--into", str(tmp_path / "into")]
    monkeypatch.setattr(sys, "argv", ["sensitivity", *words])
    main()
    said = capsys.readouterr().out
    assert "| deleted (%) | magnitude | obd_sweep | obd_sweep predicted |" in said
    assert [line.split(" | ")[0] for line in said.splitlines()[2:5]] == ["| 0", "| 20", "| 80"]
    assert len(pd.read_csv(tmp_path / "into" / "sensitivity.csv")) == 2 * 3
    assert all((tmp_path / "into" / f"sensitivity{suffix}").stat().st_size > 1000 for suffix in (".png", ".svg"))


@pytest.mark.parametrize("text", ["", "0", "1", "0.5,x", "1.5"])
def test_densities_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="fractions between 0 and 1"):
        densities(text)


def test_a_criterion_of_ones_own_has_what_its_defaults_list_says(tmp_path):
    options = tmp_path / "criterion"
    options.mkdir()
    (options / "mine.yaml").write_text("defaults: [rigl, _self_]\ngrow: null\n")
    (options / "of_nobody.yaml").write_text("defaults: [fish]\n")
    folders = [tmp_path, CONF]
    assert criterion("mine", folders) == Criterion(criterion("rigl", folders).drop, None)
    with pytest.raises(ConfigError, match="--criterion of_nobody cannot be composed by itself: .*fish"):
        criterion("of_nobody", folders)


def test_what_cannot_be_measured_is_refused_by_name(run, tmp_path):
    with pytest.raises(ConfigError, match="--criterion fish: choose from .*magnitude"):
        criterion("fish", [Path("conf")])
    with pytest.raises(DataError, match="is not the folder of a finished run"):
        trained(tmp_path)
    with pytest.raises(Incompatible, match="criterion=obd_exact: the exact Hessian takes a pass per weight"):
        list(curves(trained(run), {"obd_exact": criterion("obd_exact", [Path("conf")])}, (0.5,), by_layer=False))
