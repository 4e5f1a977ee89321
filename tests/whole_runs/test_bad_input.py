"""What a user can mend gets one message that names it and says what to type: no traceback, a non-zero exit, nothing lost."""

from __future__ import annotations

import csv
import errno
import json
import os
import struct
from pathlib import Path

import pytest

from fedprune.errors import ConfigError, Incompatible
from fedprune.experiment.build import build
from fedprune.running import loggers
from fedprune.storage.checkpoint import load_state, save_state

TINY = (
    *("rounds=2", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2"),
    *("local.batch_size=16", "logger=none", "executor=serial", "density=0.3"),
)


def assert_refused(result, *words: str) -> None:
    """One message that holds all of these words, and nothing that frightens."""
    assert result.rc == 1
    assert "Traceback" not in result.text
    assert "Error executing job" not in result.text
    for word in words:
        assert word in result.err, f"{word!r} is not in:\n{result.text}"


@pytest.fixture
def refusal(assemble):
    """refusal(*typed) -> the error with which the composition is refused, before anything trains."""

    def refuse(*typed: str) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            build(*assemble(*TINY, *typed)).executor()
        return caught.value

    return refuse


# --- names -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("densty=0.1", ["densty: there is no such key; the nearest are density"]),
        ("federated.cohrt=3", ["federated.cohrt: there is no such key; the nearest are federated.cohort"]),
        ("trainer.max_epochs=3", ["type rounds=100", "local.epochs=1"]),
        ("callbacks=none", ["callbacks", "local.module._target_"]),
        ("local.optimizer.lrr=3", ["lrr"]),
        ("criterion.drop.beta=3", ["beta"]),
        ("criteron=snip", ["criteron"]),
        ("criterion=snpi", ["criterion=snpi: there is no such option; the nearest are snip"]),
        ("+experiment=lth_fed", ["experiment=lth_fed: there is no such option; the nearest are lth_fedavg"]),
        ("rounds=many", ["rounds", "many", "Integer"]),
        ("density=low", ["density", "low", "Float"]),
        ("dry_run=perhaps", ["dry_run", "perhaps", "bool"]),
    ],
)
def test_a_typo_is_named_with_what_there_is(typed, words, command):
    assert_refused(command(*TINY, typed), *words)
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("+federated.cohrt=3", ["+federated.cohrt: there is no such key; the nearest are federated.cohort"]),
        ("+lr=0.1", ["+lr: there is no such key here; type local.optimizer.lr=0.1"]),
        ("+optimizer.lr=0.1", ["+optimizer.lr: there is no such key here; type local.optimizer.lr=0.1"]),
    ],
)
def test_a_key_that_was_added_and_that_nothing_reads_is_refused(typed, words, command):
    assert_refused(command(*TINY, typed), *words)
    assert list(Path("outputs").rglob("*.json")) == []


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--dry-run"], ["--dry-run is no flag: keys have no dashes before them: type dry_run=true"]),
        (["--rounds=3"], ["type rounds=3"]),
        (["local.optimizer.lr=interval(0,1)"], ["local.optimizer.lr=interval(0,1): a grid has commas", "docs/howto/sweeps.md"]),
        (["local.optimizer.lr=interval(0,1)", "-m"], ["interval(0,1): a grid has commas", "docs/howto/sweeps.md"]),
        (["hydra/sweeper=annealing", "-m"], ["hydra/sweeper=annealing: there is no such option", "docs/howto/sweeps.md"]),
        (["device=gpu"], ["device=gpu: there is no such device; choose device=auto or device=cpu"]),
        (["+federated.cohrt=3"], ["federated.cohort"]),
    ],
)
def test_what_is_typed_as_elsewhere_is_answered_in_one_line(typed, words, command):
    result = command(*TINY, *typed)
    assert_refused(result, *words)
    assert len(result.err.splitlines()) == 1
    if "device=gpu" not in typed:
        assert not list(Path("outputs").glob("*/*"))


def test_a_single_run_says_where_its_results_are(command, folder):
    result = command(*TINY, "rounds=1")
    assert "results: " in result.out and folder().name in result.out and "python -m fedprune.analysis" in result.out


def test_a_key_that_was_added_and_that_another_value_refers_to_is_read(command):
    assert command(*TINY, "+lr=0.1", "local.optimizer.lr=${lr}", "rounds=1").rc == 0


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("+local.optimizer.momentun=0.9", ["local.optimizer", "momentun"]),
        ("+criterion.drop.alpa=2", ["alpa"]),
        ("+what.unit.size=2", ["size"]),
        ("+partition.alpa=2", ["alpa"]),
        ("+where.examplse=3", ["examplse"]),
        ("+logger.projct=x", ["projct"]),
        ("+executor.worker=3", ["worker"]),
        ("+federated.server.beta=0.9", ["beta"]),
        (
            "model._target_=nowhere.Net",
            ["nowhere.Net: there is no module nowhere: set PYTHONPATH=FOLDER in front of the command"],
        ),
        ("model._target_=fedprune.models.cnn.nothing", ["fedprune.models.cnn.nothing"]),
        ("criterion.drop._target_=nowhere.mine", ["nowhere"]),
        ("local.optimizer._target_=torch.optim.SDG", ["torch.optim.SDG"]),
    ],
)
def test_a_key_that_its_object_does_not_have_is_named_before_anything_trains(typed, words, refusal):
    message = str(refusal("how_often=one_shot", typed))
    assert all(word in message for word in words), message


# --- values ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["density=0"], ["density=0", "more than 0, at most 1"]),
        (["density=1.5"], ["density=1.5", "more than 0, at most 1"]),
        (["density=nan"], ["density=nan"]),
        (["federated.cohort=5"], ["federated.cohort=5", "federated.clients=4"]),
        (["rounds=0"], ["rounds=0"]),
        (["seed=-1"], ["seed=-1"]),
        (["federated.weighting=votes"], ["federated.weighting=votes", "examples, uniform"]),
        (["federated.batchnorm=global"], ["federated.batchnorm=global", "average, local, frozen"]),
        (["local.epochs=1"], ["local.epochs=1 and local.steps=2", "set the other to null"]),
        (["local.batch_size=0"], ["local.batch_size=0"]),
        (["local.optimizer.lr=-1"], ["local.optimizer", "-1"]),
        (["local.clip_norm=0"], ["local.clip_norm=0"]),
        (["local.lr_decay=0"], ["local.lr_decay=0"]),
        (["local.proximal_mu=-1"], ["local.proximal_mu=-1"]),
        (["federated=fedadam", "federated.server.lr=0"], ["federated.server.lr=0"]),
        (["federated.aggregate.uncovered=drop"], ["federated.aggregate.uncovered=drop", "keep, zero"]),
        (
            ["federated/aggregate=trimmed_mean", "federated.aggregate.trim=0.5"],
            ["federated.aggregate.trim=0.5", "coordinate_median"],
        ),
        (["how_often=iterative", "how_often.rate=1.5"], ["how_often.rate=1.5"]),
        (["how_often=iterative", "how_often.times=2"], ["how_often.times=2 and how_often.rate=0.2", "null"]),
        (["how_often=gradual", "how_often.every=0"], ["how_often.every=0"]),
        (["how_often=gradual", "how_often.shape=round"], ["how_often.shape=round", "cubic, linear, exponential"]),
        (["how_often=dynamic", "criterion=rigl", "how_often.swap=1"], ["how_often.swap=1"]),
        (["when.start=0.7"], ["when.start=0.7 and when.stop=0.6"]),
        (["rewind=early", "rewind.round=-1"], ["rewind.round=-1"]),
        (["where.examples=0"], ["where.examples=0"]),
        (["where=server", "where.proxy=100", "where.examples=0", "criterion=snip"], ["where.examples=0"]),
        (["where=server", "where.proxy=2000"], ["2000", "1438"]),
        (["what.layers=[dense]"], ["what.layers", "dense", "conv, linear"]),
        (["what.skip=[fc9]"], ["fc9", "fc1"]),
        (["what=weights_per_layer", "+what.scope.rates.fc9=0.5", "how_often=one_shot", "when=after_training"], ["fc9", "fc1"]),
        (["what=filters_global", "model=cnn_fedavg", "what.unit.reduce=median"], ["what.unit.reduce=median", "mean"]),
        (["model=cnn_small"], ["model=cnn_small", "16x16", "model=lenet_300_100"]),
        (["model=resnet20", "model.norm=layer"], ["model.norm=layer", "group"]),
        (["device=tpu"], ["device=tpu", "device=auto"]),
        (["device=cuda:99"], ["device=cuda:99", "device=auto"]),
        (["executor=processes", "executor.workers=0"], ["executor.workers=0"]),
        (["executor=processes", "executor.start=threads"], ["executor.start=threads", "spawn"]),
        (["executor=auto", "executor.workers=0"], ["executor.workers=0"]),
        (["executor=batched", "executor.at_once=0"], ["executor.at_once=0", "null"]),
        (["executor=cuda", "device=cpu"], ["executor=cuda", "device=cpu", "choose executor=auto", "executor=batched"]),
        (["eval_every=0"], ["eval_every=0"]),
        (["checkpoint_every=-1"], ["checkpoint_every=-1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_out_of_range_is_named_with_its_range(typed, words, refusal):
    error = refusal(*typed)
    assert type(error) is ConfigError  # and not Incompatible, which a sweep would skip
    assert all(word in str(error) for word in words), str(error)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            ["rounds=9", "how_often=dynamic", "how_often.every=1"],
            ["criterion=magnitude has no formula to grow by", "choose criterion=rigl"],
        ),
        (
            ["rounds=9", "how_often=dynamic", "how_often.every=1", "criterion=set", "rewind=init"],
            ["rewind=init would undo that", "choose rewind=none"],
        ),
        (["how_often=gradual", "when=before_training"], ["choose when=during_training"]),
        (["how_often=one_shot", "criterion=snip", "where=server"], ["where=server has no data", "choose where=cohort"]),
        (["how_often=one_shot", "rewind=early"], ["rewind.round=2 comes after the first prune event", "choose"]),
        (["what=filters_global"], ["the network has no conv layer to prune", "choose another model, or what=weights_global"]),
        (["federated.batchnorm=local"], ["the network has no BatchNorm", "choose federated.batchnorm=average"]),
        (
            ["what.min_per_layer=500", "how_often=one_shot", "density=0.01"],
            ["what.min_per_layer=500", "choose what.min_per"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_impossible_composition_is_refused_with_what_to_choose(typed, words, refusal):
    error = refusal(*typed)
    assert type(error) is Incompatible
    assert all(word in str(error) for word in words), str(error)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["density=1.5"], ["density=1.5"]),
        (["federated.cohort=5"], ["federated.cohort=5", "federated.clients=4"]),
        (["what=filters_global"], ["the network has no conv layer to prune", "choose another model"]),
        (["how_often=one_shot", "+criterion.drop.alpa=2"], ["alpa"]),
        (["executor=processes", "executor.workers=0"], ["executor.workers=0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_on_the_command_line_it_is_one_message_and_nothing_is_trained(typed, words, command, folder):
    assert_refused(command(*TINY, *typed), *words)
    assert not (folder() / "metrics.jsonl").exists() or not (folder() / "metrics.jsonl").read_text()
    assert words[0] in json.loads((folder() / "failed.json").read_text())["reason"]


def test_a_gpu_that_is_not_there_is_told_before_data_is_looked_for(command):
    result = command(*TINY, "executor=cuda", "device=cpu", "data=fashion_mnist", "data.root=nowhere", "density=2")
    assert_refused(result, "executor=cuda trains on a GPU", "choose executor=auto", "density=2")
    assert "nowhere" not in result.err
    assert not Path("nowhere").exists()


def test_all_problems_are_told_at_once(command):
    wrong = ["density=3", "federated.cohort=9", "local.batch_size=0", "how_often=gradual", "how_often.every=0", "device=tpu"]
    wrong += ["federated=fedavgm", "federated.server.lr=-1", "partition=dirichlet", "partition.alpha=0"]
    result = command(*TINY, *wrong)
    assert_refused(result, "density=3", "federated.cohort=9", "local.batch_size=0", "how_often.every=0", "device=tpu")
    assert_refused(result, "federated.server.lr=-1", "partition.alpha=0")
    assert len(result.err.strip().splitlines()) == 7
    assert all(line.startswith("- ") for line in result.err.strip().splitlines())


# --- data ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["federated.clients=500", "federated.cohort=2"], ["500 clients", "there are 1438", "lower federated.clients"]),
        (
            ["partition=dirichlet", "partition.alpha=0.001", "federated.clients=40"],
            ["Dirichlet(alpha=0.001)", "raise"],
        ),
        (["partition.val=0.6", "partition.test=0.5"], ["partition.val=0.6 and partition.test=0.5"]),
        (["partition=shards", "partition.classes=0"], ["partition.classes=0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_partition_that_cannot_be_made_says_what_to_change(typed, words, refusal):
    message = str(refusal(*typed))
    assert all(word in message for word in words), message


@pytest.fixture
def offline(monkeypatch) -> None:
    """No network: nobody listens where everything is sent."""
    for scheme in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


def test_a_missing_data_file_is_named_with_where_to_put_it(command, offline, tmp_path):
    result = command(*TINY, "data=mnist", f"data.root={tmp_path}/mine")
    assert_refused(result, "data=mnist", "train-images-idx3-ubyte.gz", f"{tmp_path}/mine/mnist", "data.root", "data=digits")


def test_a_damaged_data_file_is_named(command, offline, tmp_path):
    folder = tmp_path / "mine" / "mnist"
    folder.mkdir(parents=True)
    for name in ("train", "t10k"):
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 10, 28, 28) + bytes(100))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 10) + bytes(10))
    result = command(*TINY, "data=mnist", f"data.root={tmp_path}/mine")
    assert_refused(result, str(folder / "train-images-idx3-ubyte"), "is damaged", "Delete it")


# --- runs ------------------------------------------------------------------------------------------------------------------


def test_a_client_that_diverges_ends_the_run_by_its_name_and_the_rounds_before_are_kept(command, folder):
    result = command(*TINY, "rounds=3", "local.optimizer.lr=1e30")
    assert_refused(result, "client ", " in round 0", "diverged", "Lower local.optimizer.lr", "federated.broken=drop")
    failed = json.loads((folder() / "failed.json").read_text())
    assert failed["status"] == "failed" and "diverged" in failed["reason"]


def interrupted(command, folder, rounds: int = 4) -> Path:
    """The folder of a run that was stopped in its third round."""
    append = loggers.append

    def stop(where: Path, metrics: dict[str, float]) -> None:
        if metrics["round"] == 2:
            raise KeyboardInterrupt
        append(where, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loggers, "append", stop)
        assert command(*TINY, f"rounds={rounds}").rc == 130
    assert load_state(folder() / "state" / "state.safetensors").round == 2
    return folder()


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100, None], ids=["empty", "garbage", "torn"])
def test_a_damaged_checkpoint_is_named_and_set_aside_and_without_another_one_the_run_begins_anew(content, command, folder):
    path = interrupted(command, folder) / "state" / "state.safetensors"
    content = path.read_bytes()[:5000] if content is None else content
    path.write_bytes(content)
    result = command(*TINY, "rounds=4")
    assert result.rc == 0
    assert f"{path} is damaged" in result.err and "going on from" not in result.out
    assert path.with_name("damaged.safetensors").read_bytes() == content
    assert load_state(path).round == 4
    assert command(*TINY, "rounds=4", "force=true").rc == 0
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_of_another_network_is_refused(command, folder, tiny):
    path = interrupted(command, folder) / "state" / "state.safetensors"
    experiment = tiny("model=cnn_fedavg")
    save_state(experiment.loop(experiment.executor()).start(), path)
    assert_refused(command(*TINY, "rounds=4"), str(path), "force=true")


def full_once_training(monkeypatch) -> None:
    """From the first line of metrics.jsonl on, nothing more can be put on the disk."""
    fsync = os.fsync

    def full(number: int) -> None:
        if list(Path("outputs").glob("*/*/metrics.jsonl")):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("often", [0, 1000])
def test_a_full_disk_ends_the_run_with_what_to_do_and_the_same_command_resumes(often, command, folder):
    with pytest.MonkeyPatch.context() as patch:
        full_once_training(patch)
        result = command(*TINY, f"checkpoint_every={often}")
    assert_refused(result, "state.safetensors", "No space left on device", "make room, and the same command resumes")
    assert not list(folder().rglob("*.partial"))
    assert not (folder() / "summary.json").exists()
    assert command(*TINY).rc == 0
    assert (folder() / "summary.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_metrics_that_cannot_be_written_end_the_run_with_what_to_do(command, folder, monkeypatch):
    append = loggers.append

    def onto_a_full_device(where: Path, metrics: dict[str, float]) -> None:
        (where / "metrics.jsonl").rename(where / "kept.jsonl")
        (where / "metrics.jsonl").symlink_to("/dev/full")
        try:
            append(where, metrics)
        finally:
            (where / "kept.jsonl").rename(where / "metrics.jsonl")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loggers, "append", onto_a_full_device)
        result = command(*TINY)
    assert_refused(result, "metrics.jsonl", "No space left on device", "the same command resumes")
    assert command(*TINY).rc == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_resuming_on_a_full_disk_does_not_lose_the_rounds_that_are_written_down(command, folder):
    """A line that the checkpoint does not know of has to go; while it goes, the others must not."""
    path = interrupted(command, folder) / "metrics.jsonl"
    kept = path.read_text()
    path.write_text(kept + kept.splitlines()[-1].replace('"round": 1', '"round": 2') + "\n")
    path.with_name(path.name + ".partial").symlink_to("/dev/full")
    write = Path.write_text

    def full(where: Path, text: str, *args: object, **kwargs: object) -> int:
        if where.name == path.name:
            where.write_bytes(b"")  # opening it for writing has emptied it
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(where, text, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        result = command(*TINY, "rounds=4")
    assert path.read_text().startswith(kept)
    assert_refused(result, "metrics.jsonl", "No space left on device")
    assert command(*TINY, "rounds=4").rc == 0
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_an_output_folder_that_cannot_be_made_is_named(command):
    Path("outputs").write_text("in the way")
    assert_refused(command(*TINY), "outputs")
    assert command("--help").rc == 0  # writes nothing


# --- sweeps ----------------------------------------------------------------------------------------------------------------


def table() -> list[dict[str, str]]:
    with open("outputs/fedprune/table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_in_a_sweep_the_other_cells_go_on_and_the_table_tells_what_failed_and_why(command):
    sweep = [*TINY, "how_often=one_shot", "criterion=magnitude,random", "local.optimizer.lr=0.05,1e30", "-m"]
    result = command(*sweep)
    assert result.rc == 1
    assert "Traceback" not in result.text
    rows = table()
    assert [row["status"] for row in rows] == ["done", "done", "failed", "failed"]
    for row in rows[2:]:
        assert "diverged" in row["reason"] and row["lr"] == "1e+30"
    assert "diverged" in result.out  # the printed table, too
    assert "failed" in result.out
    assert {path.name for path in Path("outputs/fedprune/figures").iterdir()} >= {"accuracy_rounds.png", "accuracy_rounds.svg"}

    done = {path: path.stat().st_mtime_ns for path in Path("outputs/fedprune").glob("*/summary.json")}
    again = command(*sweep)  # what failed is tried again, what is done is not
    assert again.rc == 1
    assert again.out.count("already done") == len(done) == 2
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert table() == rows


def test_in_a_sweep_what_means_nothing_is_skipped_with_its_reason_and_is_no_failure(command):
    result = command(*TINY, "how_often=one_shot,gradual", "when=before_training,during_training", "-m")
    assert result.rc == 0
    rows = table()
    assert sorted(row["status"] for row in rows) == ["done", "done", "done", "skipped"]
    (skipped,) = [row for row in rows if row["status"] == "skipped"]
    assert (skipped["how_often"], skipped["when"]) == ("gradual", "before_training")
    assert "choose when=during_training" in skipped["reason"] and "choose when=during_training" in result.out


def test_a_sweep_in_which_everything_fails_still_ends_with_its_table(command):
    result = command(*TINY, "density=2,3", "-m")
    assert result.rc == 1
    assert [row["status"] for row in table()] == ["failed", "failed"]
    assert "density=2" in result.out and "density=3" in result.out
    assert "Traceback" not in result.text


def test_a_bug_in_one_cell_is_recorded_and_the_others_go_on(command, monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("def wrong(params):\n    raise ZeroDivisionError('a bug of mine')\n")
    monkeypatch.syspath_prepend(tmp_path)
    cells = "criterion.drop._target_=mine.wrong,fedprune.pruning.criterion.magnitude"
    result = command(*TINY, "how_often=one_shot", cells, "-m")
    assert result.rc == 1
    rows = table()
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert "ZeroDivisionError: a bug of mine" in rows[1]["reason"]
    (log,) = Path("outputs/fedprune").glob("*/error.log")
    assert "Traceback" in log.read_text() and "mine.py" in log.read_text()


def test_a_bug_in_a_single_run_shows_where_it_is(command, monkeypatch, tmp_path, folder):
    """What the user cannot mend by typing something else keeps its traceback, and leaves the reason in the folder."""
    (tmp_path / "mine.py").write_text("def wrong(params):\n    raise ZeroDivisionError('a bug of mine')\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = command(*TINY, "how_often=one_shot", "criterion.drop._target_=mine.wrong")
    assert result.rc == 1
    assert "a bug of mine" in result.text
    assert "mine.py" in (folder() / "error.log").read_text()
    assert json.loads((folder() / "failed.json").read_text())["status"] == "failed"
