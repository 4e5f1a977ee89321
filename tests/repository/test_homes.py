"""Every home in conf/experiment/home is a sweep that can be run, and every page in docs/home is what its numbers say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fedprune.analysis.home.evidence import saved
from fedprune.analysis.home.index import evidence_in, index
from fedprune.analysis.home.page import page
from fedprune.analysis.home.sweep import HOMES, load_sweep
from fedprune.analysis.metric import ACCURACY
from fedprune.config import CONF
from fedprune.config.home import roles, sought
from fedprune.experiment.build import build
from fedprune.run_id import METHOD

PAGES = Path(__file__).parents[2] / "docs" / "home"
KEYS = sorted(path.stem for path in HOMES.glob("*.yaml"))

METRICS = {ACCURACY.column(part) for part in ("client", "tuned", "unseen", "test")}

NO_METHODS = {
    *("benchmark", "benchmark_without_density", "taxonomy_grid"),  # grids
    *("fedavg", "fedavg_magnitude_mask", "fedavg_random_mask", "fedavg_small_dense", "standalone"),  # baselines
    *("han2015", "l0", "levai2020", "lth", "obd", "one_ticket", "slimming", "snip", "targeted_dropout", "variational_dropout"),
}
"""Experiments that are no published method of federated learning; the last line is centralised."""

VARIANTS = dict.fromkeys(("lth_equal_rounds", "lth_fedavg_shakespeare", "lth_fedavg_watch"), "lth_fedavg")
"""Experiments that are another setting of a method, and the home of that method."""


@pytest.mark.parametrize("key", KEYS)
def test_a_home_names_experiments_and_metrics_that_there_are(key):
    sweep = load_sweep(key)
    assert sweep.name == f"home_{key}"
    assert sweep.title.endswith(" at home") and sweep.about.endswith(".")
    assert [each for each in sweep.experiments if not (CONF / "experiment" / f"{each}.yaml").is_file()] == []
    assert {each.metric for each in roles(sweep.home).values()} <= METRICS
    named = {sought(each.run, sweep.experiments) for each in roles(sweep.home).values()}
    assert named == set(sweep.experiments), "a run that nothing is compared with"
    assert len(sweep.params["seed"].split(",")) == 5


@pytest.mark.parametrize("key", KEYS)
def test_the_method_of_a_home_passes_the_checks(key, compose):
    sweep = load_sweep(key)
    method = sought(sweep.home.method.run, sweep.experiments)
    settings = {**sweep.params, "seed": "0", f"+{METHOD}": method}
    config, names = compose(f"+experiment=home/{key}", *(f"{name}={value}" for name, value in settings.items()))
    if names["data"] == "digits":  # others are files that a bare machine has not
        build(config, names)


def test_every_federated_method_has_a_home_or_is_a_variant_of_one():
    methods = {path.stem for path in (CONF / "experiment").glob("*.yaml")} - NO_METHODS
    assert methods - set(KEYS) == set(VARIANTS)
    assert set(VARIANTS.values()) <= set(KEYS)


def test_pages_and_their_index_are_what_the_numbers_say():
    """If not, `python -m fedprune.analysis.home --into docs/home` writes them anew."""
    found = evidence_in(PAGES)
    texts = {each.key: (page(each), saved(each)) for each in found}
    kept = {key: ((PAGES / f"{key}.md").read_text(), (PAGES / f"{key}.json").read_text()) for key in texts}
    assert [key for key in texts if texts[key] != kept[key]] == []
    assert {path.stem for path in PAGES.glob("*.md")} - {"README"} == set(texts)
    assert not found or (PAGES / "README.md").read_text() == index(found)


def test_accuracies_on_the_shared_test_set_are_counts_of_its_examples():
    """So the size that the resolution follows from is right. FedPM is the mean over several samples of its mask."""
    for found in evidence_in(PAGES):
        ours = [run.series("test/accuracy") for name, run in found.runs.items() if not name.endswith("fedpm")]
        counts = pd.concat(ours) * (found.test_examples or 0)
        assert found.test_examples and (counts - counts.round()).abs().max() < 1e-5, found.key
