"""The taxonomy's figure says what conf/ says, and is legible."""

import functools
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from omegaconf import OmegaConf

from fedprune.config import CONF
from fedprune.pruning import evidence
from fedprune.run_id import METHOD

DOCS = Path(__file__).parents[2] / "docs"
FIGURE = DOCS / "taxonomy.svg"

with pytest.MonkeyPatch.context() as patched_path:
    patched_path.syspath_prepend(DOCS / "drawing")
    import taxonomy
    import taxonomy_facts
    from taxonomy_figure import WIDTH, draw

pytestmark = pytest.mark.slow

LONG = {
    "name": "x" * 19,
    "paper": "Abcdefghij & Klmnopqr 2019",
    "year": 2019,
    "part": taxonomy_facts.FEDERATED,
    "with": ["dropout=variational"],
}


@pytest.fixture(scope="module", autouse=True)
def composed_once() -> Iterator[None]:
    """Hydra composes each experiment once, whoever asks: it takes most of the time of these tests."""
    compose = taxonomy_facts._compose
    once = functools.cache(lambda conf, *overrides: compose(conf, list(overrides)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taxonomy_facts, "_compose", lambda conf, overrides: once(conf, *overrides))
        yield


@pytest.fixture(scope="module")
def facts(composed_once) -> taxonomy_facts.Facts:
    return taxonomy_facts.facts()


def test_the_committed_figure_is_not_stale(facts):
    assert taxonomy.read_facts(FIGURE) == facts, f"{FIGURE} shows another conf/ than there is: type `make taxonomy`"


def test_every_option_of_every_axis_stands_in_one_family(facts):
    for axis, families in facts["axes"].items():
        options = [option for family in families.values() for option in family]
        assert sorted(options) == sorted(path.stem for path in (CONF / axis).glob("*.yaml"))


def test_families_by_what_a_criterion_asks_for_and_what_lives_together(facts):
    criteria, what = facts["axes"]["criterion"], facts["axes"]["what"]
    assert {"magnitude", "lamp"} <= set(criteria["weights"])
    assert {"snip", "snip_of_clients", "gradient"} <= set(criteria["gradients"])
    assert {"obd_sweep", "woodfisher"} <= set(criteria["curvature"])
    assert criteria["to exchange"] == ["fedtiny", "prunefl", "rigl", "set", "set_redistributing"]
    assert "other" not in criteria, "evidence that is in no family: add it to EVIDENCE"
    assert what["n of m"] == ["weights_2of4", "weights_4of8"]
    assert "filters_global" in what["structured"] and "weights_erk" in what["unstructured"]
    assert what["both"] == ["filters_and_weights"]


def test_every_evidence_but_the_mask_and_what_compensates_is_in_one_family():
    known = {*evidence.FROM_SERVER, *evidence.FROM_NETWORK, *evidence.FROM_DATA} - {"mask", *evidence.OF_REMOVAL}
    assert sorted(known) == sorted(piece for family in taxonomy_facts.EVIDENCE.values() for piece in family)


def test_options_that_go_together_exist_and_stand_together(facts):
    for axis, families in taxonomy_facts.TOGETHER.items():
        assert {name: sorted(options) for name, options in families.items()}.items() <= {
            name: sorted(options) for name, options in facts["axes"][axis].items()
        }.items()


def test_every_experiment_is_a_method_at_its_place_or_a_grid_over_the_taxonomy(facts, compose):
    drawn = {method["name"]: method for method in facts["methods"]}
    for path in (CONF / "experiment").glob("*.yaml"):
        swept = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") or {}
        if {"what", "criterion", "when", "how_often"} <= set(swept) or f"+{METHOD}" in swept:  # of which others are points
            assert path.stem not in drawn
            continue
        answers, names = drawn[path.stem]["answers"], compose(f"+experiment={path.stem}")[1]
        assert answers == {axis: str(swept.get(axis, names[axis])).split(",")[0] for axis in answers}
        assert drawn[path.stem]["paper"], f"{path} names no paper"


def test_the_founding_papers_come_first_those_made_for_federation_last_and_each_part_goes_by_year(facts):
    parts = [*taxonomy_facts.PARTS, taxonomy_facts.FEDERATED]
    keys = [(parts.index(method["part"]), method["year"]) for method in facts["methods"]]
    assert keys == sorted(keys)
    part = {method["name"]: method["part"] for method in facts["methods"]}
    assert (part["lth"], part["lth_fedavg"], part["feddst"]) == tuple(parts)
    assert {name for names in taxonomy_facts.PARTS.values() for name in names} <= part.keys()


def test_what_a_method_has_besides_its_answers_is_told(facts):
    besides = {method["name"]: method["with"] for method in facts["methods"]}
    assert besides["zerofl"] == ["aggregate=mean_with_zeros", "dropout=swat", "upload=top_weights"]
    assert (besides["han2015"], besides["fedprox"], besides["fedavg"]) == (["penalty=l2"], ["local=fedprox"], [])


@pytest.mark.parametrize(
    ("comment", "cited"),
    [
        ("# Optimal Brain Damage: by saliency h w^2 / 2. LeCun, Denker & Solla 1990. More.", ("LeCun et al. 1990", 1990)),
        ("# Of two. Frankle & Carbin 2019, with a round in place of an epoch.", ("Frankle & Carbin 2019", 2019)),
        ("# A reconstruction of Levai & Zombori 2020 from its abstract.", ("Levai & Zombori 2020", 2020)),
        (
            "# @package _global_\n# Broken over Lee, Ajanthan &\n# Torr 2019.\nkey: 1  # Han et al. 2015",
            ("Lee et al. 2019", 2019),
        ),
        ("# By threshold (Han et al. 2015).", ("Han et al. 2015", 2015)),
        ("# Dense. McMahan, Moore, Ramage, Hampson & Aguera y Arcas 2017.", ("McMahan et al. 2017", 2017)),
        ("# Long, Anagnostopoulos,\n# Puthiya Parambath & Bi 2023", ("Long et al. 2023", 2023)),
        ("# Since 1998 nobody is named.", ("", 9999)),
    ],
)
def test_the_paper_is_the_first_that_the_comments_name(comment, cited):
    assert taxonomy_facts._cited(comment) == cited


def boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text of the figure and where it stands, in pixels; unhinted, as an svg has its glyphs."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    with matplotlib.rc_context({"text.hinting": "no_hinting"}):
        return [(text.get_text(), text.get_window_extent(renderer)) for text in texts]


@pytest.mark.parametrize("more", [0, 12])
def test_all_is_shown_within_the_figure_and_no_text_covers_another(facts, more):
    methods = facts["methods"] + [LONG | {"answers": facts["methods"][0]["answers"]}] * more
    figure = draw(facts | {"methods": methods})
    shown = boxes(figure)
    words = {text for text, _ in shown}
    assert {option for axis in facts["axes"].values() for family in axis.values() for option in family} <= words
    assert {method[key] for method in methods for key in ("name", "paper")} <= words
    height = figure.get_size_inches()[1] * figure.dpi
    for text, box in shown:
        assert box.x0 >= 0 and box.x1 <= WIDTH and box.y0 >= 0 and box.y1 <= height, text
    for (one, box), (other, another) in combinations(shown, 2):
        across = min(box.x1, another.x1) - max(box.x0, another.x0)
        along = min(box.y1, another.y1) - max(box.y0, another.y0)
        assert across <= 0 or along <= 2, (one, other)


def test_the_command_writes_the_same_file_every_time(facts, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["taxonomy", "--into", str(tmp_path / "a")])
    taxonomy.main()
    taxonomy.write(facts, tmp_path / "b")  # facts that were read on their own: what two commands do, at less cost
    assert (tmp_path / "a/taxonomy.svg").read_bytes() == (tmp_path / "b/taxonomy.svg").read_bytes()
    assert taxonomy.read_facts(tmp_path / "a/taxonomy.svg") == facts == json.loads(json.dumps(facts))


def test_a_drawing_without_facts_is_told_from_one_with(tmp_path):
    (tmp_path / "other.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    assert taxonomy.read_facts(tmp_path / "other.svg") is None
