"""The configuration: its schema, and the objects that its nodes name by `_target_`."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
"""The folder of the yaml files: inside the package in an installed wheel, beside it in a checkout."""
