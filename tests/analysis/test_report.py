"""Run folders -> frames -> the table and the report, on folders small enough to be worked out by hand."""

import itertools
import json
import logging
import math
import xml.etree.ElementTree
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from fedprune import analysis
from fedprune.analysis import __main__
from fedprune.errors import FedpruneError
from helpers.run_folders import TICKET, row, write_run

pytestmark = pytest.mark.slow


def test_find_runs_is_sorted_at_any_depth_and_names_an_empty_folder(tmp_path: Path):
    folders = [write_run(tmp_path / name, TICKET) for name in ("b", "a/deep", "c")]
    assert analysis.find_runs(tmp_path) == sorted(folders)
    assert analysis.find_runs(folders[0]) == [folders[0]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FedpruneError, match=r"empty' has no run\.json"):
        analysis.find_runs(tmp_path / "empty")
    with pytest.raises(FedpruneError, match="nowhere' is not a folder"):
        analysis.load_runs(tmp_path / "nowhere")


def test_load_runs_has_a_row_per_run_with_axes_swept_keys_last_metrics_and_sums(tmp_path: Path):
    write_run(tmp_path / "a", TICKET, overrides=["+federated.clients=100", "rewind=early", "~logger.x"], rewind="early")
    write_run(tmp_path / "b", TICKET[:2], failed="failed")
    write_run(tmp_path / "c", TICKET[:3], done=False)
    runs = analysis.load_runs(str(tmp_path)).set_index(pd.Index(["a", "b", "c"]))
    assert list(runs["status"]) == ["done", "failed", "unfinished"]
    assert list(runs["reason"]) == ["", "it failed", "3 of 4 rounds done"]
    assert list(runs["rewind"]) == ["early", "init", "init"]
    assert list(runs["clients"]) == [100, "default", "default"]
    assert runs.loc["a", "logger.x"] == "removed"
    assert runs.loc["a", "test/accuracy"] == 0.6
    assert list(runs["total/up_bytes"]) == [12e6, 4e6, 6e6]
    assert list(runs["time/total_s"]) == [9.0, 1.0, 1.5]  # the summary's, else the sum over rounds
    assert list(analysis.load_runs([tmp_path / "c"])["status"]) == ["unfinished"]


def test_a_swept_key_that_a_run_was_not_given_has_the_value_of_its_configuration(tmp_path: Path):
    write_run(tmp_path / "a", TICKET, overrides=["federated.clients=20"], config={"federated": {"clients": 20}})
    write_run(tmp_path / "b", TICKET, seed=1, config={"federated": {"clients": 20}})
    write_run(tmp_path / "c", TICKET, seed=1, overrides=["federated.clients=50"], config={"federated": {"clients": 50}})
    runs = analysis.load_runs(tmp_path)
    assert list(runs["clients"]) == [20, 20, 50]
    assert list(analysis.table(runs)["seeds"]) == [2, 1]


def test_runs_of_before_and_after_a_change_of_code_are_not_one_cell(tmp_path: Path):
    """Two seeds, and seed 0 again with other code: as one cell they would be three seeds."""
    for name, seed, code in (("a", 0, "1"), ("b", 1, "1"), ("c", 0, "2")):
        about = write_run(tmp_path / name, TICKET, seed=seed) / "run.json"
        described = json.loads(about.read_text()) | {"id_of_config": str(seed), "inputs": {"code": {"my.py": code}}}
        about.write_text(json.dumps(described))
    assert list(analysis.table(analysis.load_runs(tmp_path))["seeds"]) == [2, 1]
    assert analysis.varying(analysis.load_runs(tmp_path)) == ["version"]
    assert "version" not in analysis.load_runs([tmp_path / "a", tmp_path / "b"])


def test_load_rounds_is_tidy_and_ignores_a_torn_last_line(tmp_path: Path):
    run = write_run(tmp_path / "a", TICKET, done=False, seed=3)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"round": 6, "test/acc')
    rounds = analysis.load_rounds(tmp_path)
    assert list(rounds["round"]) == [0, 1, 2, 3, 4, 5]
    assert set(rounds["criterion"]) == {"magnitude"}
    assert set(rounds["seed"]) == {3}
    assert list(rounds["test/accuracy"].isna()) == [True, False, False, False, True, False]


def test_damaged_files_are_named(tmp_path: Path):
    run = write_run(tmp_path / "a", TICKET)
    (run / "summary.json").write_text("{")
    with pytest.raises(FedpruneError, match=r"summary\.json is damaged.*start the same command again"):
        analysis.load_runs(tmp_path)


DAMAGED = {
    "run.json": [
        b"\xff",
        b"{",
        b"[]",
        b"null",
        b'{"name": 3}',
        b"[" * 100_000,
        b'{"name": "a", "axes": [], "overrides": [], "seed": 0}',
    ],
    "summary.json": [b"\xff", b"{", b"[]", b"{}", b'{"metrics": 3}'],
    "failed.json": [b"\xff", b"[]", b"{}"],
}


@pytest.mark.parametrize("content", [b'{"round": 0, "a/b": "\xff"}\n', b"[]\n", b"3\n"])
def test_of_a_damaged_round_the_run_stays_with_its_summary_and_the_table_names_the_line(content, tmp_path, caplog):
    run = write_run(tmp_path / "a", TICKET)
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes() + content)
    (row,) = analysis.load_runs(tmp_path).to_dict("records")
    assert row["reason"].startswith(f"metrics.jsonl: line {len(TICKET) + 1} cannot be read (")
    assert f"{run / 'metrics.jsonl'}: line {len(TICKET) + 1} cannot be read" in caplog.text
    assert row["test/accuracy"] == TICKET[-1]["test/accuracy"]


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, each in DAMAGED.items() for content in each])
def test_a_damaged_run_is_left_out_and_named_and_the_others_are_analysed(name, content, tmp_path, caplog):
    whole = write_run(tmp_path / "a", TICKET)
    other = write_run(tmp_path / "b", TICKET, seed=1, done=name != "failed.json")
    (other / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert list(analysis.load_runs(tmp_path)["run"]) == [str(whole)]
        assert {*analysis.load_rounds(tmp_path)["run"]} == {str(whole)}
    assert "left out of the analysis" in caplog.text and str(other) in caplog.text
    with pytest.raises(FedpruneError, match="is damaged"):
        analysis.load_runs([other])


def test_levels_are_the_last_evaluated_rounds_before_each_prune_event(tmp_path: Path):
    write_run(tmp_path / "a", TICKET)
    write_run(tmp_path / "b", [*TICKET[:4], row(4, 1, density=0.5), row(5, 2, density=0.25)], seed=1)
    levels = analysis.levels(analysis.load_rounds(tmp_path))
    assert list(zip(levels["round"], levels["density/weights"], levels["test/accuracy"], strict=True)) == [
        *[(1, 1.0, 0.9), (3, 0.5, 0.8), (5, 0.25, 0.6)],
        *[(1, 1.0, 0.9), (3, 0.5, 0.8)],  # its level 2 was never evaluated
    ]


def test_varying_names_what_tells_cells_apart_and_never_the_seed(tmp_path: Path):
    write_run(tmp_path / "a", TICKET, seed=0, executor="serial", overrides=["federated.clients=20"])
    write_run(tmp_path / "b", TICKET, seed=1, executor="processes", criterion="random", density=0.2)
    runs, rounds = analysis.load_runs(tmp_path), analysis.load_rounds(tmp_path)
    assert analysis.varying(runs) == analysis.varying(rounds) == ["criterion", "density", "clients"]
    assert analysis.varying(runs[:1]) == []


def test_circumstances_tell_runs_apart_only_if_nothing_else_does(tmp_path: Path):
    write_run(tmp_path / "a", TICKET, seed=0, executor="serial")
    write_run(tmp_path / "b", TICKET, seed=1, executor="processes")
    assert analysis.varying(analysis.load_runs(tmp_path)) == []
    write_run(tmp_path / "c", TICKET, seed=1, executor="ray")
    assert analysis.varying(analysis.load_runs(tmp_path)) == ["executor"]


def test_an_experiment_that_a_run_is_named_after_is_not_a_second_column(tmp_path: Path):
    write_run(tmp_path / "a", TICKET, overrides=["+experiment=lth_fedavg"])
    assert "experiment" not in analysis.load_runs(tmp_path)


@pytest.mark.parametrize("names", [("lth_fedavg", "lth_fedavg"), ("feddst", "fedavg")])
def test_experiments_of_a_sweep_are_its_methods(names, tmp_path: Path):
    for experiment, name in zip(("feddst", "fedavg"), names, strict=True):
        folder = write_run(tmp_path / experiment, TICKET, overrides=[f"+experiment={experiment}"], criterion=experiment)
        (folder / "run.json").write_text((folder / "run.json").read_text().replace("lth_fedavg", name))
    frame = analysis.load_runs(tmp_path)
    assert sorted(frame["method"]) == ["fedavg", "feddst"] and "experiment" not in frame
    assert analysis.varying(frame) == ["method", "criterion"]
    analysis.report(tmp_path, tmp_path, ["fedavg"])
    assert set(pd.read_csv(tmp_path / "methods.csv")["method"]) == {"fedavg", "feddst"}
    assert "\nfeddst &" in (tmp_path / "table.tex").read_text() and "| feddst |" in (tmp_path / "differences.md").read_text()


def test_experiments_on_several_data_sets_are_no_methods_to_be_tuned(tmp_path: Path):
    for number, (experiment, data) in enumerate((("feddst", "digits"), ("fedavg", "digits"), ("fedavg", "emnist"))):
        write_run(tmp_path / str(number), TICKET, overrides=[f"+experiment={experiment}"], data=data)
    frame = analysis.load_runs(tmp_path)
    assert sorted(frame["experiment"]) == ["fedavg", "fedavg", "feddst"] and "method" not in frame


def test_table_by_hand(tmp_path: Path):
    # Means: (90 + 92 + 97) / 3 = 93. Sample variance: ((-3)^2 + (-1)^2 + 4^2) / (3 - 1) = 13.
    for seed, accuracy in enumerate([0.90, 0.92, 0.97]):
        write_run(tmp_path / f"m{seed}", [row(0, 0), row(1, 1, accuracy, 0.2)], seed=seed)
    write_run(tmp_path / "r", [row(0, 0), row(1, 1, 0.95, 0.2)], criterion="random")
    table = analysis.table(analysis.load_runs(tmp_path))
    assert list(table["criterion"]) == ["random", "magnitude"]  # the best first
    assert list(table["seeds"]) == [1, 3]
    assert list(table["test accuracy (%)"]) == pytest.approx([95, 93])
    assert math.isnan(table["test sd (%)"][0])
    assert table["test sd (%)"][1] == pytest.approx(math.sqrt(13))
    last = table.iloc[1]
    assert last["val accuracy (%)"] == last["client accuracy (%)"] == pytest.approx(93)
    assert [last[name] for name in ("client p10 (%)", "density (%)")] == pytest.approx([50, 20])
    assert [last[name] for name in ("sent up (MB)", "sent down (MB)", "training (GFLOPs)", "time (s)")] == pytest.approx(
        [4, 2, 6, 9]
    )
    assert list(table["status"]) == ["done", "done"]


def test_cells_without_a_result_are_at_the_bottom_with_their_reason(tmp_path: Path):
    write_run(tmp_path / "a", failed="skipped", criterion="a")
    write_run(tmp_path / "b", failed="failed", criterion="b")
    write_run(tmp_path / "c", TICKET[:2], done=False, criterion="c")
    write_run(tmp_path / "d0", TICKET, criterion="d")
    write_run(tmp_path / "d1", TICKET, criterion="d", seed=1, failed="failed")
    table = analysis.table(analysis.load_runs(tmp_path))
    assert list(table["criterion"]) == ["d", "c", "b", "a"]
    assert list(table["status"]) == ["1 done, 1 failed", "unfinished", "failed", "skipped"]
    assert list(table["reason"]) == ["it failed", "2 of 4 rounds done", "it failed", "it skipped"]
    assert list(table["seeds"]) == [1, 0, 0, 0]
    assert list(table["test accuracy (%)"].isna()) == [False, True, True, True]


def test_report_writes_the_table_and_all_files_of_each_figure(tmp_path: Path):
    for seed in (0, 1):
        write_run(tmp_path / f"runs/m{seed}", TICKET, seed=seed)
        write_run(tmp_path / f"runs/r{seed}", TICKET, seed=seed, criterion="random")
    write_run(tmp_path / "runs/s", failed="skipped", criterion="rig|l")
    table = analysis.report(tmp_path / "runs", tmp_path / "out")
    figures = {f"accuracy_{x}{suffix}" for x in ("density", "bytes", "rounds") for suffix in (".png", ".svg", ".pdf")}
    assert {path.name for path in (tmp_path / "out/figures").iterdir()} == figures
    for svg in (tmp_path / "out/figures").glob("*.svg"):
        assert xml.etree.ElementTree.parse(svg).getroot().tag.endswith("svg")
        assert "rig|l" not in svg.read_text()
    for png in (tmp_path / "out/figures").glob("*.png"):
        assert png.read_bytes().startswith(b"\x89PNG")
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "out/table.csv", keep_default_na=False, na_values=[""])[list(table)[:4]], table[list(table)[:4]]
    )
    by_level = pd.read_csv(tmp_path / "out/levels.csv")
    assert list(by_level["weights remaining (%)"]) == [100, 100, 50, 50, 25, 25]
    assert "| 100 | 0 | 90.0 ± 0.0 | 90.0 ± 0.0 |" in (tmp_path / "out/levels.md").read_text()
    head, rule, *lines = (tmp_path / "out/table.md").read_text().splitlines()
    assert head.startswith("| criterion | seeds | test accuracy (%) |")
    assert set(rule) <= set("|-: ")
    assert lines[0].startswith("| magnitude | 2 | 60.00 | 0.00 |")
    assert [line for line in lines if "rig" in line] == []
    assert lines[-1] == "1 of 3 cells have no result; table.csv has them, with their reasons."
    assert list(table["reason"]) == ["", "", "it skipped"]


@pytest.mark.parametrize("rows", [TICKET, [row(0, 0), row(1, 0, 0.9)]], ids=["one run", "never pruned"])
def test_report_of_a_single_run_is_named(tmp_path: Path, rows: list[dict[str, float]]):
    run = write_run(tmp_path / "a", rows)
    table = analysis.report([run], tmp_path / "out")
    assert list(table["name"]) == ["lth_fedavg"]
    assert len(list((tmp_path / "out/figures").iterdir())) == 9


def test_levels_are_written_where_runs_come_to_more_than_one_density_and_old_ones_removed(tmp_path: Path):
    never = write_run(tmp_path / "never", [row(0, 0), row(1, 0, 0.9)], how_often="never")
    once = write_run(tmp_path / "once", [row(0, 1, 0.8, 0.5)], how_often="one_shot")
    analysis.report([never, once], tmp_path / "out")
    assert "| 100 | 0 | 90.0 |  |\n| 50 | 1 |  | 80.0 |\n" in (tmp_path / "out/levels.md").read_text()
    analysis.report([never], tmp_path / "out")
    assert not list((tmp_path / "out").glob("levels.*"))


def test_a_sweep_over_the_taxonomy_is_written_as_a_grid_and_an_old_one_removed(tmp_path: Path):
    axes = ("what", ("a", "b")), ("criterion", ("c", "d")), ("when", ("e", "f")), ("how_often", ("g", "h"))
    for answers in itertools.product(*(options for _, options in axes)):
        which = dict(zip((axis for axis, _ in axes), answers, strict=True))
        write_run(tmp_path / "runs" / "".join(answers), [row(0, 1, 0.8, 0.1)], **which)
    analysis.report(tmp_path / "runs", tmp_path / "out")
    written = [
        tmp_path / "out" / name for name in ("taxonomy.md", "figures/accuracy_taxonomy.png", "figures/accuracy_taxonomy.svg")
    ]
    assert "| a | c | 80.0 | 80.0 | 80.0 | 80.0 |" in written[0].read_text()
    assert all(path.stat().st_size > 1000 for path in written[1:])
    analysis.report(tmp_path / "runs" / "aceg", tmp_path / "out")
    assert not any(path.exists() for path in written)


def test_report_without_any_result_says_which_figures_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_run(tmp_path / "runs/a", failed="failed")
    write_run(tmp_path / "runs/b", TICKET[:3], done=False, seed=1)
    stale = tmp_path / "out/figures/accuracy_density.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    with caplog.at_level(logging.WARNING):
        table = analysis.report(tmp_path / "runs", tmp_path / "out")
    assert list(table["status"]) == ["1 unfinished, 1 failed"]
    assert {record.getMessage().split()[1] for record in caplog.records} == {
        "accuracy_density",
        "accuracy_bytes",
        "accuracy_rounds",
    }
    assert not list(stale.parent.iterdir())


def test_runs_that_never_started_a_round_still_make_a_table(tmp_path: Path):
    write_run(tmp_path / "a", failed="skipped")
    assert list(analysis.report(tmp_path, tmp_path)["reason"]) == ["it skipped"]


def _shown(table: pd.DataFrame, width: int) -> str:
    console = Console(width=width, force_terminal=True, color_system=None, soft_wrap=True)
    with console.capture() as capture:
        console.print(analysis.show(table, console))
    return capture.get()


def test_show_gives_a_narrow_terminal_fewer_columns_and_says_so(tmp_path: Path):
    for seed, accuracy in enumerate([0.90, 0.92, 0.97]):
        write_run(tmp_path / f"m{seed}", [row(0, 0), row(1, 1, accuracy, 0.2)], seed=seed)
    write_run(tmp_path / "s", failed="skipped", criterion="[bold]rigl")
    table = analysis.table(analysis.load_runs(tmp_path))
    wide, narrow = _shown(table, 200), _shown(table, 60)
    assert "93.00 ± 3.61" in wide
    assert "93.00 ± 3.61" in narrow
    assert "GFLOPs" in wide
    assert "not shown" not in wide
    assert "not shown for want of room: val accuracy (%), client accuracy (%)" in narrow
    assert "[bold]rigl: skipped: it skipped" in narrow
    assert max(map(len, narrow.split("not shown")[0].splitlines())) <= 60


def test_the_best_on_validation_data_comes_first_and_the_column_is_named(tmp_path: Path):
    """Test data would order them the other way round: 0.8 against 0.7."""
    last = row(0, 0) | {"test/accuracy": 0.8, "val/accuracy": 0.6}, row(0, 0) | {"test/accuracy": 0.7, "val/accuracy": 0.9}
    for name, metrics in zip(("snip", "random"), last, strict=True):
        write_run(tmp_path / name, [metrics], criterion=name)
    write_run(tmp_path / "s", failed="failed", criterion="grasp")
    table = analysis.table(analysis.load_runs(tmp_path))
    assert list(table["criterion"]) == ["random", "snip", "grasp"]
    shown = _shown(table, 200)
    assert "ordered by val accuracy (%)" in shown and "1 of 3 cells have no result, and no row" in shown
    assert "grasp: failed: it failed" in shown


def test_command_prints_the_table_and_the_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_run(tmp_path / "runs/a", TICKET)
    monkeypatch.setattr("sys.argv", ["analysis", str(tmp_path / "runs"), "--into", str(tmp_path / "out")])
    __main__.main()
    printed = capsys.readouterr().out
    assert "lth_fedavg" in printed
    assert f"{tmp_path}/out/table.csv" in printed
    assert f"{tmp_path}/out/figures/accuracy_density.svg" in printed


def test_command_compares_with_the_lines_that_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for seed in (0, 1):
        for criterion in ("magnitude", "random"):
            write_run(tmp_path / "runs" / f"{criterion}{seed}", TICKET, criterion=criterion, seed=seed)
    monkeypatch.setattr("sys.argv", ["analysis", str(tmp_path / "runs"), "--against", "random"])
    __main__.main()
    levels = (tmp_path / "runs/levels.md").read_text()
    assert "## Gain in test accuracy (%) over level 0 of the same cell" in levels
    gains = levels.split("## Gain in test accuracy (%) over random")[1]
    assert "| weights remaining (%) | magnitude |" in gains
    assert "+0.0 (+0.0 to +0.0)" in gains


def test_command_ends_with_a_message_where_there_is_no_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["analysis", "nowhere"])
    with pytest.raises(SystemExit, match="1"):
        __main__.main()
    assert "'nowhere' is not a folder" in capsys.readouterr().err
