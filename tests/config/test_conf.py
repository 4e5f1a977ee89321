"""Every yaml under conf/ composes, makes its object, says what it is, and has no key that does nothing."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.utils import get_method
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from fedprune import run_id
from fedprune.config import CONF, schema
from fedprune.config.instantiate import make
from fedprune.data.datasets import Dataset
from fedprune.errors import ConfigError, DataError
from fedprune.execution import Executor
from fedprune.experiment.standardise import KEYS, of_the_data_set
from fedprune.local.module import LocalModule
from fedprune.local.recipe import Recipe
from fedprune.types import State, Subnet

pytestmark = pytest.mark.slow

FILES = sorted(CONF.rglob("*.yaml"))
OPTIONS = [path for path in FILES if path.parent != CONF and path.relative_to(CONF).parts[0] not in ("experiment", "hydra")]
EXPERIMENTS = sorted((CONF / "experiment").glob("*.yaml"))
PARTIAL = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")

NESTED = (
    *("federated/aggregate", "federated/availability", "federated/capacity", "federated/client", "federated/round"),
    "federated/upload",
    *("data/augment", "local/optimizer", "local/penalty", "local/dropout"),
)

NEEDS = {("executor", "ray"): "ray", ("model", "torchvision"): "torchvision", ("model", "timm"): "timm"}
"""Packages of extras, by the options that cannot be made without them."""

# What an option is called with when a run is built; the rest are called with nothing.
CALLED_WITH: dict[str, dict[str, object]] = {"model": {"shape": (3, 32, 32), "classes": 10}}
FOR_TEXT = {"shape": (20,), "classes": 10}


def name(path: Path) -> str:
    return str(path.relative_to(CONF).with_suffix(""))


def option(path: Path) -> tuple[str, str]:
    """(group, option) of a yaml file."""
    group, _, choice = name(path).rpartition("/")
    return group, choice


def chosen(made: Callable[..., tuple[DictConfig, dict[str, str]]], path: Path, overrides: tuple[str, ...] = ()) -> DictConfig:
    """The node that the option stands for, in a whole configuration that `compose` or `assemble` made of these overrides."""
    group, choice = option(path)
    package = NEEDS.get((group, choice))
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    config, _ = made(*overrides or (f"{group}={choice}",))
    node = OmegaConf.select(config, group.replace("/", "."))
    if group == "data":  # the augmentation beside it is an option of its own
        with open_dict(node):
            del node["augment"]
    return node


def columns() -> dict[Path, tuple[str, ...]]:
    """Return overrides for each option: itself and options of other groups, so that each configuration is one of many options.

    Groups inside another one have configurations of their own: they would take the place of what the option brings.
    """
    found: dict[Path, tuple[str, ...]] = {}
    for nested in (False, True):
        groups = [
            list(group)
            for name, group in itertools.groupby(OPTIONS, lambda path: option(path)[0])
            if (name in NESTED) == nested
        ]
        for row in itertools.zip_longest(*groups):
            present = [path for path in row if path is not None]
            found |= dict.fromkeys(present, tuple("=".join(option(path)) for path in present))
    return found


COLUMNS = columns()

OWN = ("table", "dataset", "hugging_face")
"""Data of a user's own, which no root finds: the options say what they need."""


LOGGERS = {"tensorboard": "tensorboard", "many_loggers": "tensorboard", "mlflow": "mlflow", "comet": "comet_ml"}
"""Loggers that need an extra, and its module."""


def nodes(config: object) -> list[DictConfig]:
    """Every node with a `_target_` in a configuration, nested ones too."""
    if isinstance(config, ListConfig):
        return [node for value in config for node in nodes(value)]
    if not isinstance(config, DictConfig):
        return []
    return [config] * ("_target_" in config) + [node for value in config.values() for node in nodes(value)]


def parameters(target: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(get_method(target)).parameters)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_begins_with_what_it_is(path):
    lines = [line for line in path.read_text().splitlines() if line != "# @package _global_"]
    assert re.match(r"# \w|# \|", lines[0]), lines[0]


@pytest.mark.parametrize("path", OPTIONS, ids=name)
def test_every_option_composes_and_makes_its_object(path, compose):
    group, choice = option(path)
    config = chosen(compose, path, COLUMNS[path])
    if group == "federated":  # plain values, an aggregate and a server step
        assert callable(make(config.aggregate))
        assert callable(make(config.server))
        assert callable(make(config.upload).pack)
    elif group == "local":  # plain values, a module around a network, an optimizer for its parameters
        module = make(config.module, torch.nn.Linear(2, 2), make(config.optimizer))
        assert isinstance(module, LocalModule)
        assert isinstance(module.configure_optimizers(), torch.optim.Optimizer)
    elif group == "local/optimizer":
        assert isinstance(make(config)(torch.nn.Linear(2, 2).parameters()), torch.optim.Optimizer)
    elif group == "data":
        root, *others = parameters(config._target_).values()
        assert root.name == "root" or choice in OWN
        assert all(parameter.default is not parameter.empty for parameter in others)
        assert inspect.signature(get_method(config._target_)).return_annotation in (Dataset, "Dataset", "Text")
    elif group == "executor" and choice in ("ray", "flower"):  # which starts a cluster, or needs one: see their own tests
        inspect.signature(get_method(config._target_)).bind(dict, **{k: v for k, v in config.items() if k not in PARTIAL})
    elif group == "executor":
        executor: Executor = make({**config, "workers": 1} if "workers" in config else config, dict)
        executor.close()
    elif group == "whose":
        assert make(config).client_mask(State(Subnet({}, {}), {}, {}), 0) == b""
    elif group == "logger" and choice in LOGGERS:
        pytest.importorskip(LOGGERS[choice])
        assert callable(make(config))
    elif group == "logger" and choice == "several":
        with pytest.raises(ConfigError, match="names no logger"):
            make(config)
    elif group in ("federated/aggregate", "wire", "logger"):
        assert callable(make(config))
    else:
        assert make(config, **(FOR_TEXT if choice.startswith("char_") else CALLED_WITH.get(group, {}))) is not None


@pytest.mark.parametrize("path", [path for path in OPTIONS if option(path)[0] == "data"], ids=name)
def test_every_data_set_is_there_or_says_what_is_missing(path, assemble, tmp_path, monkeypatch):
    for scheme in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # nobody listens there: no network
    config = chosen(assemble, path)
    if option(path)[1] in OWN:
        with pytest.raises(DataError, match=f"data={option(path)[1]} needs .*: type "):
            make(of_the_data_set(OmegaConf.create({"data": config})))
        return
    config.root = str(tmp_path)
    try:
        classes, missing = make(of_the_data_set(OmegaConf.create({"data": config}))).classes, ""
    except DataError as error:
        classes, missing = 0, str(error)
    least = 1 if option(path)[1] == "diabetes" else 10  # outputs of a regression
    assert classes >= least or (f"data={option(path)[1]}: " in missing and str(tmp_path) in missing)


@pytest.mark.parametrize("path", OPTIONS, ids=name)
def test_no_option_has_a_key_that_does_nothing(path, assemble):
    for node in nodes(chosen(assemble, path)):
        accepted = parameters(node._target_)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
            continue
        of_the_run = KEYS if option(path)[0] == "data" else ()
        assert set(node) - {*PARTIAL, *of_the_run} <= set(accepted), node._target_


@pytest.mark.parametrize("path", OPTIONS, ids=name)
def test_every_parameter_that_a_user_may_set_is_in_its_yaml(path, assemble):
    # Hydra's struct mode refuses a key that the yaml does not have: what is not there cannot be typed.
    for node in nodes(chosen(assemble, path)):
        if node._target_.startswith("torch."):
            continue
        hidden = {key for key, parameter in parameters(node._target_).items() if parameter.default is not parameter.empty}
        filled_in_by_the_run = {
            "names",
            "anchor",
            "plans",
            "parts",
            "network",
            "what",
            "private",
            "order",
            "ends",
            "untouched",
            "carry",
            "cost",
            "began",
        }
        assert hidden - filled_in_by_the_run <= set(node) | {"known"}, node._target_


def test_every_group_has_a_default_and_the_taxonomy_is_complete(compose):
    _, names = compose()
    groups = {option(path)[0] for path in OPTIONS}
    assert groups == {*run_id.GROUPS, *NESTED}
    assert set(names) == set(run_id.GROUPS)


def test_the_schema_is_in_no_group(compose):
    compose()  # registers it
    store = ConfigStore.instance()
    for group in (*run_id.GROUPS, *NESTED, "experiment"):
        with pytest.raises(OSError, match="not found"):
            store.list(group)
    assert "schema.yaml" in store.list("")


def test_experiments_are_added_and_not_values_by_default():
    defaults = OmegaConf.load(CONF / "config.yaml").defaults
    assert not any("experiment" in entry for entry in defaults if isinstance(entry, DictConfig))
    assert EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_every_experiment_is_named_as_its_file_and_stands_at_the_top(path, compose):
    assert path.read_text().startswith("# @package _global_\n# ")
    config, _ = compose(f"+experiment={path.stem}")
    goes_on = OmegaConf.load(path).get("defaults", [""])[0]  # a second sweep into the folder of the first
    assert config.name == (goes_on.rpartition("/")[2] if isinstance(goes_on, str) and "/experiment/" in goes_on else path.stem)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_every_axis_of_an_experiments_grid_is_a_text_of_values_that_compose(path, compose):
    swept = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") or {}
    for key, values in swept.items():
        assert isinstance(values, str), f"{key}: Hydra wants its values as one text"
        assert "," in values or f"+{run_id.METHOD}" in swept, f"{key}: an axis of one value is none, but in a protocol"
        group, values_ = key.lstrip("+").partition("@")[0], [value.strip() for value in values.split(",")]
        if (CONF / group).is_dir():  # whose options are composed above, and with this experiment where it is run
            assert all((CONF / group / f"{value}.yaml").is_file() for value in values_)
            continue
        for value in values_:
            compose(f"+experiment={path.stem}", f"{key}={value}")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("federated=fedadam", "federated.clients=4", "local=fedprox", "local.optimizer.lr=1e-3", "density=0.5"),
        ("federated=fedavgm", "federated/aggregate=intersection", "federated.server.beta=0.5"),
        ("federated/aggregate=overlap_mean", "federated.aggregate.uncovered=zero"),
        ("federated=centralized", "federated/aggregate=trimmed_mean", "federated.aggregate.trim=0.2"),
        ("local/optimizer=adam", "what=weights_per_layer", "+what.scope.rates.fc1=0.5", "rewind=early", "rewind.round=1"),
        ("local.epochs=null", "local.steps=3", "what.skip=[first]", "executor.workers=2", "seed=7"),
    ],
)
def test_what_the_tests_assemble_is_what_hydra_composes(overrides, compose, assemble):
    assert assemble(*overrides) == compose(*overrides)


def test_the_schema_of_local_and_the_recipe_have_the_same_defaults():
    """They are two classes: OmegaConf needs a mutable one with types that it knows, clients a frozen one that is checked."""
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    keys = [field for field in dataclasses.fields(schema.Local) if field.name in defaults and field.name != "fixed"]
    assert len(keys) == 10
    assert {field.name: field.default for field in keys} == {field.name: defaults[field.name] for field in keys}
