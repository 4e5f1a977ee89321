"""Figures show what the frames hold, stay legible with many lines, and are the same file every time."""

import itertools
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.text import Text

from fedprune import analysis
from fedprune.analysis import curves, figures
from fedprune.analysis.figures.looks import looks
from fedprune.analysis.read import METHOD
from fedprune.data import datasets
from fedprune.data.federate import federate, save_partition
from fedprune.data.partition import Dirichlet
from fedprune.errors import FedpruneError

Points = list[tuple[int, int, float, float | None]]
TICKET: Points = [(0, 0, 1, None), (1, 0, 1, 0.9), (2, 1, 0.5, 0.7), (3, 1, 0.5, 0.8), (4, 2, 0.25, None), (5, 2, 0.25, 0.6)]


def rounds(points: Points, seed: int = 0, name: str = "lth_fedavg", **which: Any) -> pd.DataFrame:
    """The rounds of one run: (round, prune events, density, accuracy)."""
    frame = pd.DataFrame(points, columns=["round", "prune/events", "density/weights", "test/accuracy"])
    frame["wire/total_bytes"] = (frame["round"] + 1) * 2_000_000
    frame["density/layer/fc1"], frame["density/layer/fc2"] = frame["density/weights"], 1.0
    frame["test/accuracy"] = frame["test/accuracy"].astype(float)
    return frame.assign(run=f"{name}{which}{seed}", status="done", name=name, seed=seed, **which)


def shifted(points: Points, by: float) -> Points:
    return [(round, events, density, accuracy and accuracy + by) for round, events, density, accuracy in points]


def grid(**values: list[Any]) -> pd.DataFrame:
    cells = itertools.product(*values.values())
    return pd.concat([rounds(TICKET, **dict(zip(values, cell, strict=True))) for cell in cells], ignore_index=True)


def density_figure(frame: pd.DataFrame) -> Figure:
    return figures.accuracy_density(analysis.levels(frame), analysis.varying(frame))


def points(axes: Axes) -> list[list[tuple[float, float]]]:
    return [[(float(x), round(float(y), 6)) for x, y in np.asarray(line.get_xydata())] for line in axes.get_lines()]


BESIDES = {"prune events", "rounds between the ends of levels"}


def legend(figure: Figure) -> list[str]:
    """The labels of the lines, without those of what else is drawn."""
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    return [text for text in texts if text not in BESIDES]


def test_density_figure_goes_from_dense_to_sparse_through_the_means_over_seeds():
    frame = pd.concat([rounds(shifted(TICKET, by), seed) for seed, by in enumerate([-0.02, 0.0, 0.02])])
    (axes,) = density_figure(frame).axes
    assert points(axes) == [[(25, 60), (50, 80), (100, 90)]]
    assert axes.get_xscale() == "log"
    left, right = axes.get_xlim()
    assert left > 100 > 25 > right
    (bars,) = [collection for collection in axes.collections if isinstance(collection, LineCollection)]
    # The sample standard deviation of -2, 0, 2 is 2.
    assert [tuple(np.round(bar[:, 1], 6)) for bar in bars.get_segments()] == [(58, 62), (78, 82), (88, 92)]


def test_a_lone_point_is_seen_and_a_dense_network_is_a_line_to_compare_with():
    snip, dense = rounds([(0, 1, 0.05, 0.8)], how_often="one_shot"), rounds([(0, 0, 1, 0.9)], how_often="never")
    (axes,) = density_figure(pd.concat([snip, dense])).axes
    never, across, one_shot = axes.get_lines()
    assert one_shot.get_marker() not in ("", "None")
    assert np.asarray(never.get_xydata()).tolist() == [[100, 90]]
    assert np.asarray(across.get_ydata()).tolist() == [90, 90]


def test_target_densities_make_one_line_together():
    cells = [
        rounds([(0, 0, 1, 0.9), (1, 1, density, 0.9 - i / 10)], density=density) for i, density in enumerate([0.5, 0.2, 0.1])
    ]
    figure = density_figure(pd.concat(cells))
    assert points(figure.axes[0]) == [[(10, 70), (20, 80), (50, 90), (100, 90)]]
    assert not figure.legends


def test_levels_of_equal_density_are_one_point_the_last():
    dynamic: Points = [(0, 1, 0.2, 0.5), (1, 2, 0.2, 0.6), (2, 3, 0.2, 0.7)]
    assert points(density_figure(rounds(dynamic)).axes[0]) == [[(20, 70)]]


def test_a_level_whose_density_differs_between_seeds_is_one_point():
    frame = pd.concat([rounds([(0, 0, 1, 0.9), (1, 1, density, 0.8)], seed) for seed, density in enumerate([0.19, 0.21])])
    assert points(density_figure(frame).axes[0]) == [[(20, 80), (100, 90)]]


def test_a_line_has_points_where_all_its_seeds_have_values():
    long, short = rounds(TICKET, 0), rounds(TICKET[:4], 1)
    assert points(density_figure(pd.concat([long, short])).axes[0]) == [[(50, 80), (100, 90)]]


def test_bytes_figure_joins_the_ends_of_levels_in_megabytes():
    (axes,) = figures.accuracy_bytes(rounds(TICKET), []).axes
    way, ends = points(axes)
    assert way == [(4, 90), (6, 70), (8, 80), (12, 60)]
    assert ends == [(4, 90), (8, 80), (12, 60)]
    assert axes.get_xscale() == "log"


def test_what_sends_nothing_is_not_in_the_bytes_figure():
    silent = rounds(TICKET, name="standalone").assign(**{"wire/total_bytes": 0})
    both = pd.concat([rounds(TICKET, name="fedavg"), silent])
    (axes,) = figures.accuracy_bytes(both, ["name"]).axes
    assert points(axes)[1] == [(4, 90), (8, 80), (12, 60)]
    assert len(points(axes)) == 2
    with pytest.raises(FedpruneError, match="nothing to draw"):
        figures.accuracy_bytes(silent, [])


def test_rounds_figure_marks_prune_events():
    (axes,) = figures.accuracy_rounds(rounds(TICKET), []).axes
    assert points(axes) == [[(2, 90), (3, 70), (4, 80), (6, 60)]]  # x: rounds trained
    (marks,) = [collection for collection in axes.collections if isinstance(collection, LineCollection)]
    assert [segment[0][0] for segment in marks.get_segments()] == [2, 4]


def test_legend_says_varying_values_only_and_names_numbers():
    frame = grid(criterion=["magnitude", "random"], rewind=["init"], **{"clients": [10, 100]})
    figure = figures.accuracy_rounds(frame, analysis.varying(frame))
    assert legend(figure) == [f"{criterion} · clients={n}" for criterion in ("magnitude", "random") for n in (10, 100)]


def test_published_methods_are_told_apart_by_name():
    frame = pd.concat([rounds(TICKET, name="feddst", whose="shared"), rounds(TICKET, name="lotteryfl", whose="personal")])
    assert legend(density_figure(frame)) == ["feddst", "lotteryfl"]


@pytest.mark.parametrize("kind", ["accuracy_density", "accuracy_bytes", "accuracy_rounds"])
def test_24_lines_are_spread_over_panels_of_at_most_8(kind: str):
    frame = grid(
        criterion=["magnitude", "random", "snip", "synflow"], rewind=["init", "early", "random_reinit"], whose=["a", "b"]
    )
    rows = analysis.levels(frame) if kind == "accuracy_density" else frame
    figure = getattr(figures, kind)(rows, analysis.varying(frame))
    assert [axes.get_title() for axes in figure.axes] == ["rewind: early", "rewind: init", "rewind: random_reinit"]
    assert len(legend(figure)) == 8
    strong = [sum(line.get_alpha() is None for line in axes.get_lines()) for axes in figure.axes]
    assert strong == [8, 8, 8]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"criterion": list("abcd"), "rewind": list("xy")},
        {"criterion": list("abcdef"), "rewind": list("xy"), "whose": list("uv"), "where": list("pq")},
        {"clients": list(range(24))},
        {"criterion": list("abcdefghijkl"), "what": list("mnopqr")},
    ],
)
def test_no_two_lines_look_the_same(values: dict[str, list[Any]]):
    frame = grid(**values)
    by = analysis.varying(frame)
    chosen = looks(frame.assign(line=curves.labels(frame, by)), by)
    distinct = {tuple(look.values()) for look in chosen.values()}
    assert len(chosen) == len(distinct) == len(frame["run"].unique())


def test_where_lines_are_single_points_markers_tell_them_apart_and_bars_show_the_spread():
    last: Points = [(0, 1, 0.1, 0.8)]
    cells = itertools.product(["a", "b", "c"], [0.1, 0.05], [0, 1])
    frame = pd.concat([rounds(shifted(last, seed / 50), seed, whose=whose, density=d) for whose, d, seed in cells])
    figure = figures.accuracy_rounds(frame, analysis.varying(frame))
    (axes,) = figure.axes
    lines = [line for line in axes.get_lines() if line.get_marker() not in ("", "None")]
    assert {line.get_linestyle() for line in lines} == {"-"}
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 6
    assert len({line.get_marker() for line in lines}) == 2
    # Of 80 and 82 the sample standard deviation is sqrt(2).
    bars = [bar for bars in axes.collections if isinstance(bars, LineCollection) for bar in bars.get_segments()]
    heights = [float(bar[1, 1] - bar[0, 1]) for bar in bars if len(bar) == 2 and bar[0, 0] == bar[1, 0]]
    assert heights == pytest.approx([2 * 2**0.5] * 6)


def test_a_legend_of_long_labels_stays_off_the_panels():
    values = {f"a.rather_long_key_{at}": [f"value_{one}" for one in range(size)] for at, size in enumerate((3, 3, 2, 2))}
    frame = grid(**values)
    figure = figures.accuracy_rounds(frame, analysis.varying(frame))
    figure.draw_without_rendering()
    legend_box = figure.legends[0].get_window_extent()
    assert not any(axes.get_window_extent().overlaps(legend_box) for axes in figure.axes)
    assert legend_box.x0 >= 0 and legend_box.x1 <= figure.bbox.x1
    assert all(axes.get_window_extent().height > 100 for axes in figure.axes)


def test_what_is_drawn_besides_the_lines_is_explained_where_it_is_drawn():
    never = rounds([*TICKET[:1], (1, 0, 1, 0.9)])
    for kind, text in (
        (figures.accuracy_bytes, "rounds between the ends of levels"),
        (figures.accuracy_rounds, "prune events"),
    ):
        assert [entry.get_text() for entry in kind(rounds(TICKET), []).legends[0].get_texts()] == [text]
        assert not kind(never, []).legends


def test_a_column_that_tells_no_line_apart_is_left_out_of_a_label_of_many_words():
    cells = [("magnitude", "iterative", "init", 40, 0.93), ("magnitude", "iterative", "early", 40, 0.93)]
    cells += [("snip", "never", "none", 680, 0.99)]
    keys = ["criterion", "how_often", "rewind", "rounds", "local.lr_decay"]
    frame = pd.concat([rounds(TICKET, **dict(zip(keys, cell, strict=True))) for cell in cells])
    figure = figures.accuracy_rounds(frame, analysis.varying(frame))
    assert legend(figure) == [f"magnitude · iterative · {rewind}" for rewind in ("early", "init")] + [
        "snip · never · rewind=none"
    ]


def test_methods_are_labelled_by_their_files_and_what_tells_their_runs_apart():
    cells = [(METHOD, "benchmark/feddst", "voted"), (METHOD, "benchmark/fedavg", "shared")]
    frame = pd.concat([rounds(TICKET, whose=whose, density=d, **{key: name}) for key, name, whose in cells for d in (0.1, 0.2)])
    assert sorted(legend(figures.accuracy_rounds(frame, analysis.varying(frame)))) == [
        *(f"density={density} · {name}" for density in (0.1, 0.2) for name in ("fedavg", "feddst")),
    ]


def test_a_folder_of_all_kinds_of_runs_has_labels_of_what_is_unusual_in_each():
    usual: dict[str, Any] = {f"key_{at}": "default" for at in range(12)} | {
        "what": "weights",
        "upload": '{"_target_": "a.b.whole"}',
    }
    unusual = [{}, *({f"key_{at}": at} for at in range(12)), {"what": "filters"}, {"upload": '{"_target_": "a.b.part"}'}]
    frame = pd.concat([rounds(TICKET, **usual | one) for one in unusual])
    figure = figures.accuracy_rounds(frame, analysis.varying(frame))
    expected = ["all as in most lines", *(f"key_{at}={at}" for at in range(12)), "filters", "part"]
    assert sorted(legend(figure)) == sorted(expected)
    figure.draw_without_rendering()
    assert figure.get_figwidth() == 7 and not figure.axes[0].get_window_extent().overlaps(figure.legends[0].get_window_extent())


def test_of_too_many_lines_the_best_are_drawn_and_the_others_are_counted():
    frame = pd.concat([rounds(shifted(TICKET, -clients / 100), clients=clients) for clients in range(30)])
    figure = figures.accuracy_rounds(frame, analysis.varying(frame))
    assert legend(figure) == [f"clients={clients}" for clients in range(24)]
    assert figure.legends[0].get_title().get_text() == "the best lines; 6 more are in the table"


def test_a_single_panel_is_as_wide_as_a_column_and_letters_are_never_small():
    figure = figures.accuracy_density(analysis.levels(grid(criterion=["magnitude", "random"])), ["criterion"])
    assert figure.get_figwidth() == 3.3
    figure.draw_without_rendering()
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 7


def test_the_bytes_figure_has_bars_at_the_ends_of_levels_of_every_line():
    once: Points = [(0, 1, 0.1, 0.7), (1, 1, 0.1, 0.8)]
    frame = pd.concat([rounds(shifted(once, seed / 50), seed) for seed in (0, 1)])
    (axes,) = figures.accuracy_bytes(frame, []).axes
    bars = [bar for bars in axes.collections if isinstance(bars, LineCollection) for bar in bars.get_segments()]
    # Of 80 and 82 the sample standard deviation is sqrt(2), the mean 81.
    assert [list(bar[:, 1]) for bar in bars] == [pytest.approx([81 - 2**0.5, 81 + 2**0.5])]


def test_densities_of_lone_points_are_told_apart_by_marker_beside_lines_of_many_points():
    last: Points = [(0, 1, 0.1, 0.8)]
    cells = [*itertools.product(["a", "b", "c"], [0.1, 0.05])]
    lone = [rounds(last, whose=whose, density=density) for whose, density in cells]
    frame = pd.concat([*lone, rounds(TICKET, whose="a", density=0.25)])
    (axes,) = figures.accuracy_rounds(frame, analysis.varying(frame)).axes
    lines = [line for line in axes.get_lines() if line.get_marker() not in ("", "None")]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 7


def test_nothing_to_draw_is_said():
    untested = rounds([(0, 0, 1, None)])
    for kind in (figures.accuracy_density, figures.accuracy_bytes, figures.accuracy_rounds, figures.layer_density):
        for frame in (pd.DataFrame(), untested):
            with pytest.raises(FedpruneError, match="nothing to draw"):
                kind(frame, [])


def test_saved_files_are_all_there_well_formed_and_the_same_every_time(tmp_path: Path):
    first = figures.save(density_figure(rounds(TICKET)), tmp_path / "a" / "accuracy.density")
    second = figures.save(density_figure(rounds(TICKET)), tmp_path / "b" / "accuracy.density.png")
    assert [path.name for path in first] == [f"accuracy.density{suffix}" for suffix in (".png", ".svg", ".pdf")]
    assert [path.name for path in first] == [path.name for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert xml.etree.ElementTree.parse(first[1]).getroot().tag.endswith("svg")
    assert "test accuracy (%)</text>" in first[1].read_text()  # as text, not as outlines
    assert b"/FontFile2" in first[2].read_bytes() and b"/Type3" not in first[2].read_bytes()  # TrueType


def test_drawing_leaves_nothing_behind(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    figures.save(density_figure(rounds(TICKET)), tmp_path / "figure")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_layer_density_is_that_of_the_last_level():
    figure = figures.layer_density(analysis.levels(grid(criterion=["magnitude", "random"])), ["criterion"])
    (axes,) = figure.axes
    assert np.asarray(axes.get_images()[0].get_array()).tolist() == [[25, 100], [25, 100]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["fc1", "fc2"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["magnitude", "random"]


@pytest.mark.parametrize("clients", [10, 100])
def test_label_histogram_shows_clients_and_classes(tmp_path: Path, clients: int):
    digits = datasets.digits()
    parts = federate(digits, Dirichlet(0.5, min_examples=3), clients, seed=0)
    save_partition(parts, digits.y, tmp_path / "partition.safetensors")
    counts = np.zeros((clients, 10), int)
    for client, part in enumerate(zip(parts.train, parts.val, parts.test, strict=True)):
        np.add.at(counts[client], digits.y[torch.cat(part)].numpy(), 1)
    totals, classes, _ = figures.label_histogram(tmp_path).axes
    assert np.array_equal(np.asarray(classes.get_images()[0].get_array()), counts.T)
    (bars,) = totals.patches
    assert isinstance(bars, StepPatch)
    assert list(bars.get_data()[0]) == list(counts.sum(axis=1))


def test_label_histogram_without_a_partition_names_the_file(tmp_path: Path):
    with pytest.raises(FedpruneError, match=r"partition\.safetensors' does not exist"):
        figures.label_histogram(tmp_path)
