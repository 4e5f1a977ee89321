"""A yaml of conf/experiment/home, or of a user's own: its claim, its sweep, and the command that runs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from yaml import YAMLError

from fedprune.config import CONF
from fedprune.config.home import Home, experiments, read_home
from fedprune.errors import ConfigError
from fedprune.identity import VOLATILE
from fedprune.run_id import METHOD, digest_of

HOMES = CONF / "experiment" / "home"


@dataclass(frozen=True)
class Sweep:
    """A sweep that tests a claim.

    key: the stem of its yaml, by which the page is named. title, about: the first line of its comment, in two. name: the folder
    of its results below outputs. params: `hydra.sweeper.params`. folder: the --config-dir that it needs, if any.
    """

    key: str
    title: str
    about: str
    name: str
    home: Home
    params: Mapping[str, str]
    folder: str | None = None

    @property
    def experiments(self) -> tuple[str, ...]:
        """Return the experiments that are swept over."""
        return experiments(self.params, METHOD)

    @property
    def command(self) -> str:
        """Return the command that runs the sweep."""
        words = ["python -m fedprune", *([f"--config-dir {self.folder}"] if self.folder else [])]
        return " ".join([*words, f"+experiment=home/{self.key}", "hydra/launcher=joblib -m"])

    @property
    def conf(self) -> Path:
        """Return the folder of the experiments that it names."""
        return Path(self.folder or CONF) / "experiment"

    @property
    def results_depend_on(self) -> dict[str, str]:
        """Return the parameters without those that change no result, and what the yamls beside it say, in short."""
        beside = {name: path for name in self.experiments if (path := self.conf / f"{name}.yaml").is_file() and "/" in name}
        said = {name: digest_of(OmegaConf.to_container(OmegaConf.load(path))) for name, path in beside.items()}
        return {key: text for key, text in self.params.items() if key not in VOLATILE} | said

    def has(self, overrides: Mapping[str, str]) -> bool:
        """Return whether a run with these overrides is of this sweep, as its yaml is now."""
        swept = {key.lstrip("+"): text for key, text in self.params.items()}
        others = {key for key in overrides if not key.startswith(("experiment", *VOLATILE)) and key not in swept}
        return not others and all(_among(overrides.get(key), text) for key, text in swept.items() if key not in VOLATILE)


def _among(value: str | None, text: str) -> bool:
    return value is not None and (value == text or value in {each.strip() for each in text.split(",")})


def load_sweep(named: str) -> Sweep:
    """Return the sweep of conf/experiment/home by its name, or that of a yaml file. Raises ConfigError if there is none, or if
    its section `home` is wrong."""
    path = Path(named) if named.endswith(".yaml") else HOMES / f"{named}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in HOMES.glob("*.yaml")))
        raise ConfigError([f"{named} is no home: choose one of {known}, or name a yaml file of your own"])
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise ConfigError([f"{path} is no yaml file: {' '.join(str(error).split())}"]) from error
    return _sweep(path, {str(key): value for key, value in content.items()} if isinstance(content, dict) else {})


def _sweep(path: Path, content: Mapping[str, object]) -> Sweep:
    node: object = content
    for word in ("hydra", "sweeper", "params"):
        node = node.get(word) if isinstance(node, Mapping) else None
    params = {str(key): str(value) for key, value in node.items()} if isinstance(node, Mapping) else {}
    missing = [key for key, value in (("home", content.get("home")), ("hydra.sweeper.params", params)) if not value]
    if missing:
        raise ConfigError([f"{path} has no section {' and no '.join(missing)}: see conf/experiment/home/lotteryfl.yaml"])
    title, about = _header(path)
    name = params.get("name", str(content.get("name", path.stem)))
    home = read_home(content["home"], experiments(params, METHOD))
    return Sweep(path.stem, title, about, name, home, params, _config_dir(path))


def _header(path: Path) -> tuple[str, str]:
    """Return the title and the rest of the comment at the top: `# LotteryFL at home: 2 classes ...`."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line != "# @package _global_"]
    first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comment = " ".join(line.lstrip("# ") for line in lines[:first])
    title, about = re.match(r"(?:(.*? at home): )?(.*)", comment).groups()  # type: ignore[union-attr]  # it matches any text
    return title or f"{path.stem} at home", about


def _config_dir(path: Path) -> str | None:
    """Return the folder that has this yaml as experiment/home/NAME.yaml; None for our own conf/."""
    folder = path.parent.parent.parent
    return None if folder.resolve() == CONF else str(folder)
