"""The command: flags anywhere, grids that narrow and grow, a dry run, what is done is skipped, options of one's own."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest

from fedprune import __version__
from fedprune.command.words import arguments
from fedprune.config import CONF
from fedprune.run_id import folder_hash

TINY = (
    *("rounds=2", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2"),
    *("local.batch_size=16", "logger=none", "executor=serial", "density=0.3"),
)

AXES = ("what", "criterion", "when", "how_often", "where", "whose", "rewind")


def runs(name: str = "fedprune") -> list[Path]:
    return sorted(path.parent for path in Path("outputs", name).glob("*/run.json"))


def axes(name: str = "fedprune") -> set[tuple[str, ...]]:
    """The answers of each run to the seven questions."""
    return {tuple(json.loads((run / "run.json").read_text())["axes"][axis] for axis in AXES) for run in runs(name)}


def files() -> dict[Path, int]:
    """Everything that lies here, and when it was last written."""
    return {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}


# --- where the flags stand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "handed_over"),
    [
        (["seed=0,1", "-m"], ["-m", "seed=0,1"]),
        (["-m", "seed=0,1"], ["-m", "seed=0,1"]),
        (["a=1", "-m", "b=2"], ["-m", "a=1", "b=2"]),
        (["a=1", "--multirun", "b=2"], ["--multirun", "a=1", "b=2"]),
        (["a=1", "--config-dir", "mine", "b=2"], ["--config-dir", "mine", "a=1", "b=2"]),
        (["a=1", "--config-dir=mine", "b=2", "-m"], ["--config-dir=mine", "-m", "a=1", "b=2"]),
        (["a=1", "-cd", "mine"], ["-cd", "mine", "a=1"]),
        (["a=1", "--cfg", "job", "--resolve"], ["--cfg", "job", "--resolve", "a=1"]),
        (["+experiment=x", "~a", "++b=-1", "c=[-1,2]"], ["+experiment=x", "~a", "++b=-1", "c=[-1,2]"]),
        (["a=1", "--cfg"], ["--cfg", "a=1"]),
        ([], []),
    ],
)
def test_flags_may_stand_anywhere(typed, handed_over):
    assert arguments(typed) == handed_over


def test_a_sweep_is_asked_for_in_the_middle(command):
    result = command(*TINY, "-m", "seed=0,1", "dry_run=true")
    assert result.rc == 0
    assert result.out.count("bytes down") == 2


# --- grids -----------------------------------------------------------------------------------------------------------------

MINE = """# @package _global_
# A grid of four cells.
name: mine
how_often: {times: 1, rate: null}
defaults:
  - override /how_often: iterative
hydra: {sweeper: {params: {criterion: "magnitude,random", what: "weights_global,weights_per_layer"}}}
"""


@pytest.fixture
def mine(outputs) -> str:
    """An experiment of the user's own, with a grid of criterion x what."""
    folder = outputs.parent / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(MINE)
    (folder / "other.yaml").write_text(MINE.replace("name: mine", "name: other"))
    return "--config-dir=mine"


def cells() -> list[tuple[str, str]]:
    return sorted((criterion, what) for what, criterion, *_ in axes("mine"))


def assert_reported(result, folder: Path) -> None:
    """A sweep leaves a table, the best on validation data first, and three figures twice each, and says where all this is."""
    assert f"results: {folder}" in result.out
    for column in ("accuracy", "density", "sent", "time", "criterion", "what", "magnitude", "weights_per_layer"):
        assert column in result.out
    assert (folder / "table.md").read_text().count("\n") == 2 + 4
    for figure in ("accuracy_density", "accuracy_bytes", "accuracy_rounds"):
        assert (folder / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / "figures" / f"{figure}.svg").read_text()
    with open(folder / "table.csv", newline="") as file:
        accuracies = [float(row["val accuracy (%)"]) for row in csv.DictReader(file)]
    assert accuracies == sorted(accuracies, reverse=True)


ALL_FOUR = [(criterion, what) for criterion in ("magnitude", "random") for what in ("weights_global", "weights_per_layer")]


def test_an_experiments_grid_is_expanded_with_m_and_only_then_and_ends_with_its_results(command, mine):
    assert command(mine, *TINY, "+experiment=mine").rc == 0
    assert cells() == [("magnitude", "weights_global")]
    result = command(mine, *TINY, "+experiment=mine", "-m")
    assert result.rc == 0
    assert cells() == ALL_FOUR
    assert result.out.count("already done") == 1  # the single job is the grid's first cell
    assert_reported(result, Path("outputs/mine"))


def test_overrides_narrow_a_grid_and_add_axes_to_it(command, mine):
    assert command(mine, *TINY, "+experiment=mine", "criterion=lamp", "seed=0,1", "-m").rc == 0
    assert cells() == [("lamp", "weights_global"), ("lamp", "weights_per_layer")]
    assert len(runs("mine")) == 4
    with open("outputs/mine/table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seeds"] for row in rows] == ["2", "2"]  # cells are told apart by everything but the seed
    assert all(float(row["test sd (%)"]) >= 0 for row in rows)


def test_several_experiments_at_once_run_as_one_job_each_and_say_so(command, mine):
    result = command(mine, *TINY, "+experiment=mine,other", "-m")
    assert result.rc == 0
    assert "each runs as one job; a grid that an experiment declares is expanded only when it is launched alone" in result.out
    assert (len(runs("mine")), len(runs("other"))) == (1, 1)
    assert "each runs as one job" not in command(mine, *TINY, "+experiment=mine", "dry_run=true").out


# --- help and dry run ------------------------------------------------------------------------------------------------------


def test_help_explains_the_questions_and_every_option_of_every_group(command):
    result = command("--help")
    assert result.rc == 0
    for axis in AXES:
        assert re.search(rf"^{axis}: ", result.out, re.MULTILINE), axis
    for folder in sorted({path.parent for path in CONF.rglob("*.yaml")} - {CONF}):
        group = folder.relative_to(CONF).as_posix()
        if not group.startswith(("hydra", "experiment")):
            (listed,) = re.findall(rf"^{group}:.*\n((?:  .+\n)+)", result.out, re.MULTILINE)
            assert re.findall(r"^  (\S+)(?:  +\S|$)", listed, re.MULTILINE) == sorted(
                path.stem for path in folder.glob("*.yaml")
            )
    assert re.search(r"^  iterative +Prunes the same fraction of the survivors in each event\.$", result.out, re.MULTILINE)
    assert max(map(len, result.out.splitlines())) <= 130
    assert "-m" in result.out and "dry_run=true" in result.out
    assert not Path("outputs").exists()


def test_help_has_the_options_of_a_users_own_folder(command):
    folder = Path("mine/criterion")
    folder.mkdir(parents=True)
    (folder / "cubed.yaml").write_text("# |w|^3. Mine 2026.\n_target_: fedprune.pruning.criterion.Criterion\n")
    assert re.search(r"^  cubed +\|w\|\^3\.$", command("--config-dir", "mine", "--help").out, re.MULTILINE)


def test_the_version_names_what_results_depend_on(command):
    import torch

    result = command("--version")
    assert result.rc == 0 and result.out.startswith(f"fedprune {__version__} (torch {torch.__version__}, hydra-core ")


def test_the_command_alone_explains_itself_and_trains_nothing(command):
    result = command()
    assert result.rc == 0 and "fedprune rounds=100" in result.out and len(result.out.splitlines()) < 24
    assert not Path("outputs").exists()


LTH = ("+experiment=lth_fedavg", "federated.clients=4", "federated.cohort=2", "partition=iid", "logger=none", "executor=serial")
LTH += ("rounds=2", "density=0.4096", "local.epochs=1", "what=weights_per_layer")


def test_a_dry_run_prints_plan_and_costs_and_writes_nothing(command):
    result = command(*LTH, "dry_run=true")
    assert result.rc == 0
    assert "plan: 10 rounds of training, 4 prune events" in result.out
    assert re.search(r"after round +2: density 0.8, rewind init", result.out)
    assert re.search(r"after round +8: density 0.4096, rewind init", result.out)
    for row in ("parameters", "rounds", "bytes down", "bytes up", "bytes of evidence", "operations"):
        assert re.search(rf"^  {row} ", result.out, re.MULTILINE), row
    assert "50,610 (50,200 prunable)" in result.out
    assert (
        "lth_fedavg: weights_per_layer · magnitude · after_training · iterative · cohort · shared · rewind init" in result.out
    )
    assert [*Path().iterdir()] == []


def test_a_dry_run_says_what_a_job_is_before_anything_trains_in_the_same_words_as_the_job(command):
    dry, real = command(*TINY, "how_often=gradual", "dry_run=true").out, command(*TINY, "how_often=gradual").out
    head = real[: real.index("round     2/2")]
    assert dry.startswith(head)
    assert "4 clients, 2 per round; seed 0" in head


def number(text: str) -> float:
    """1.23 MB -> 1230000"""
    value, prefix = re.match(r"([\d.e+]+) ([kMG]?)", text).groups()
    return float(value) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[prefix]


@pytest.mark.parametrize(
    "overrides",
    [LTH, (*TINY, "how_often=gradual", "when=during_training", "rounds=8", "what=weights_erk", "wire=dense")],
    ids=["lth", "gradual"],
)
def test_the_estimated_bytes_are_those_that_are_then_sent(overrides, command, folder):
    out = command(*overrides, "dry_run=true").out
    down, up, evidence, flops = (
        number(re.search(rf"^  {row} +(.*)$", out, re.MULTILINE)[1])
        for row in ("bytes down", "bytes up", "bytes of evidence", "operations")
    )
    assert command(*overrides).rc == 0
    (name,) = [path.name for path in Path("outputs").iterdir()]
    rows = [json.loads(line) for line in (folder(name) / "metrics.jsonl").read_text().splitlines()]
    assert evidence == 0
    assert down == pytest.approx(sum(row["wire/down_bytes"] for row in rows), rel=0.02)
    assert up == pytest.approx(sum(row["wire/up_bytes"] for row in rows), rel=0.02)
    assert flops == pytest.approx(sum(row["flops/train"] for row in rows), rel=0.1)  # clients differ in size


@pytest.mark.parametrize(
    "criterion",
    [
        ("criterion=rigl", "how_often=dynamic", "how_often.every=1", "when.stop=1", "rounds=5"),
        ("criterion=woodfisher", "how_often=gradual", "how_often.every=1", "when.stop=1", "where.examples=10"),
    ],
)
def test_the_estimated_bytes_of_evidence_are_those_that_are_then_sent(criterion, command, folder):
    overrides = (*TINY, *criterion)
    out = command(*overrides, "dry_run=true").out
    estimated = sum(number(re.search(rf"^  {row} +(.*)$", out, re.MULTILINE)[1]) for row in ROWS)
    assert command(*overrides).rc == 0
    rows = [json.loads(line) for line in (folder() / "metrics.jsonl").read_text().splitlines()]
    assert estimated == pytest.approx(rows[-1]["wire/total_bytes"], rel=0.03)


ROWS = ("bytes down", "bytes up", "bytes of evidence")


def test_a_dry_sweep_trains_nothing_and_leaves_results_as_they_are(command):
    sweep = (*TINY, "how_often=one_shot,never", "-m")
    assert command(*sweep).rc == 0
    results = files()
    result = command(*sweep, "dry_run=true", "rounds=7")
    again = command(*sweep, "dry_run=true")
    assert (result.rc, again.rc) == (0, 0)
    assert result.out.count("bytes down") == again.out.count("bytes down") == 2
    assert files() == results


# --- done, and done again --------------------------------------------------------------------------------------------------


def test_the_same_command_again_skips_what_is_done_and_force_does_it_again(command, folder):
    assert command(*TINY).rc == 0
    before, summary = files(), (folder() / "summary.json").read_text()
    again = command(*TINY)
    assert again.rc == 0
    assert "already done" in again.out and str(folder().name) in again.out
    assert files() == before
    assert command(*TINY, "force=true").rc == 0
    assert files()[folder().relative_to(Path().absolute()) / "summary.json"] > max(before.values())
    assert json.loads((folder() / "summary.json").read_text()).keys() == json.loads(summary).keys()
    assert len((folder() / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("typed", "same"),
    [
        *(
            (override, True)
            for override in ("executor=processes", "executor=auto", "logger=csv", "checkpoint_every=0", "device=cpu")
        ),
        *((override, True) for override in ("density=0.3", "force=true", "data.root=/elsewhere", "rewind=none")),
        *((override, False) for override in ("seed=1", "rounds=3", "local.optimizer.lr=0.01", "criterion=random")),
        *((override, False) for override in ("partition.val=0.2", "name=other", "wire=dense", "where.examples=3")),
        *(
            (override, False)
            for override in (
                "federated/aggregate=intersection",
                "federated.aggregate.uncovered=zero",
                "federated.regrown=server",
            )
        ),
    ],
)
def test_a_run_is_the_same_run_unless_something_changes_its_result(typed, same, assemble):
    assert (folder_hash(assemble(*TINY)[0]) == folder_hash(assemble(*TINY, typed)[0])) is same


def test_another_logger_finds_the_run_that_is_done(command):
    assert command(*TINY).rc == 0
    assert "already done" in command(*TINY, "logger=csv", "executor=processes", "density=0.3").out
    assert command(*TINY, "seed=1").rc == 0
    assert len(runs()) == 2


def test_a_single_job_of_an_experiment_is_the_cell_of_its_grid(command, mine):
    """The single job's folder has nothing that distinguishes it in its name; the grid's cell has."""
    path = Path("mine/experiment/mine.yaml")
    path.write_text(path.read_text() + EVERYTHING)
    assert command(mine, "+experiment=mine").rc == 0
    result = command(mine, "+experiment=mine", "criterion=magnitude", "what=weights_global")
    assert result.rc == 0
    assert "already done" in result.out
    assert len(runs("mine")) == 1


EVERYTHING = """
rounds: 2
density: 0.3
federated: {clients: 4, cohort: 2}
local: {epochs: null, steps: 2, batch_size: 16}
"""


def test_a_run_folder_holds_what_it_should(command, folder):
    assert command(*TINY, "how_often=one_shot").rc == 0
    names = {str(path.relative_to(folder())) for path in folder().rglob("*") if path.is_file()}
    assert names == {
        *("config.yaml", "run.json", "plan.txt", "partition.safetensors", "metrics.jsonl", "state/state.safetensors"),
        *("ticket.safetensors", "summary.json", ".lock"),
    }
    assert "one_shot" in folder().name
    assert (folder() / "plan.txt").read_text().startswith("plan: 2 rounds of training, 1 prune event\n  after round")


def test_a_plan_too_long_for_the_screen_is_whole_in_its_file(command, folder):
    result = command(*TINY, "rounds=60", "local.steps=1", "how_often=gradual", "when.start=0", "when.stop=1", "eval_every=60")
    assert result.rc == 0
    assert "more events (all of them: plan.txt)" in result.out
    assert len((folder() / "plan.txt").read_text().splitlines()) == 61


# --- options of one's own --------------------------------------------------------------------------------------------------

OWN = '''
import torch

def mine(params, generator, power: float = 1.0):
    """|w|^power, with a little chance."""
    return {name: w.abs().pow(power) + 1e-9 * torch.rand(w.shape, generator=generator(name)) for name, w in params.items()}
'''


def test_a_criterion_of_ones_own_is_a_file_on_the_path_and_a_yaml(command, outputs, monkeypatch, folder):
    (outputs.parent / "my_criteria.py").write_text(OWN)
    monkeypatch.syspath_prepend(outputs.parent)
    yaml = outputs.parent / "mine" / "criterion" / "mine.yaml"
    yaml.parent.mkdir(parents=True)
    yaml.write_text(
        "# Mine.\n_target_: fedprune.pruning.criterion.Criterion\n"
        "drop: {_target_: my_criteria.mine, _partial_: true, power: 2.0}\ngrow: null\n"
    )
    result = command(*TINY, "executor=processes", "--config-dir", "mine", "criterion=mine", "how_often=one_shot")
    assert result.rc == 0, result.text
    assert json.loads((folder() / "run.json").read_text())["axes"]["criterion"] == "mine"
    assert json.loads((folder() / "summary.json").read_text())["metrics"]["density/weights"] == pytest.approx(0.3)
    assert "mine" in command("--config-dir", "mine", "--help").out


def test_a_local_step_of_ones_own_is_a_subclass_named_in_the_configuration(command, outputs, monkeypatch, folder):
    (outputs.parent / "smoothing_task.py").write_text(
        "import torch\nfrom fedprune.local.module import LocalModule\n\n\n"
        "class Smoothed(LocalModule):\n"
        "    def __init__(self, net, optimizer, smoothing):\n"
        "        super().__init__(net, optimizer)\n"
        "        self.smoothing = smoothing\n\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        inputs, labels = batch\n"
        "        return {'loss': torch.nn.functional.cross_entropy(self.net(inputs), labels, label_smoothing=self.smoothing)}\n"
    )
    monkeypatch.syspath_prepend(outputs.parent)
    result = command(*TINY, "local.module._target_=smoothing_task.Smoothed", "+local.module.smoothing=0.9", "criterion=snip")
    assert result.rc == 0, result.text
    smoothed = json.loads((folder() / "summary.json").read_text())["metrics"]["train/loss"]
    assert command(*TINY, "criterion=snip", "name=plain").rc == 0
    assert smoothed != json.loads((folder("plain") / "summary.json").read_text())["metrics"]["train/loss"]


NOTED = """
import multiprocessing
from pathlib import Path
from fedprune.local.module import LocalModule

class Noted(LocalModule):
    def training_step(self, batch, batch_idx):
        name = multiprocessing.current_process().name
        Path("processes", name).touch()
        return super().training_step(batch, batch_idx)
"""
"""A module that notes in which process it is trained."""


def test_cells_that_run_side_by_side_train_in_their_own_process(fedprune, outputs):
    (outputs.parent / "noted.py").write_text(NOTED)
    (outputs.parent / "processes").mkdir()
    words = (*TINY, "executor=auto", "local.module._target_=noted.Noted")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    result = fedprune(*words, "seed=0,1", *launcher, "-m", new=True, PYTHONPATH=path(outputs))
    assert result.rc == 0, result.text
    names = {file.name for file in (outputs.parent / "processes").iterdir()}
    assert names and all(name.startswith("LokyProcess") for name in names)


def test_a_scheduler_that_takes_one_job_after_the_other_gets_each_cell_and_a_table_comes_out(fedprune, command, outputs):
    """The launcher of Slurm, with processes of this machine in the place of a cluster."""
    words = (*TINY, "seed=0,1", "density=0.5", "how_often=one_shot", "when=before_training")
    alone = command(*words, "name=alone", "-m")
    result = fedprune(*words, "name=sent", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "-m")
    assert (alone.rc, result.rc) == (0, 0), result.text
    assert (outputs / "sent" / "table.csv").exists()
    for file in (outputs / "alone").glob("*/metrics.jsonl"):
        (other,) = (outputs / "sent").glob(f"*seed={0 if 'seed=0' in str(file) else 1}*/metrics.jsonl")
        assert without_times(file) == without_times(other)


def without_times(file: Path) -> list[dict]:
    rows = map(json.loads, file.read_text().splitlines())
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def path(outputs: Path) -> str:
    return os.pathsep.join([str(outputs.parent), os.environ.get("PYTHONPATH", "")])
