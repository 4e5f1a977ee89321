"""Read plays in Markdown: (file or folder) -> {(play, speaker): text}. No code in the files is run.

# Hamlet                          a heading ends the speech before it
### SCENE I. Elsinore.
_Enter BERNARDO_                  stage directions, between `_`, `*` or `[ ]`, are left out
**BERNARDO**                      the speaker, until another one is named
Who's there?
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from fedprune.data.formats import damaged

Role = tuple[str, str]
"""(play, speaker), both as the files have them."""

VOCABULARY = "\n !\"&',-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The 74 characters of the texts, in the order of their numbers. Other characters in the files are markup or slips of the
typesetter, and left out. A dash becomes two hyphens, as in most of the plays."""

_PARAGRAPHS = re.compile(r"\n\s*\n|\n(?=\*\*)")
_SPEAKER = re.compile(r"\*\*([^*\n]+)\*\*\s*")
_DIRECTION = re.compile(r"_[^_]*_|(?<!\*)\*(?!\*)[^*]*\*(?!\*)|\[[^]]*\]")
_FOREIGN = re.compile(f"[^{re.escape(VOCABULARY)}]")
# zipfile raises RuntimeError for a member whose flags say that it is encrypted and, as NotImplementedError, for a header that
# asks for an unknown compression or version. A damaged header looks like that.
_UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, UnicodeDecodeError, RuntimeError)


def read_plays(path: Path, plays: int, remedy: str) -> dict[Role, str]:
    """Return the text of each role of the plays `*/<play>.md` of a zip archive (a wheel is one) or folder.

    The order is that of the plays' names and, in a play, of first speeches. Lines are joined by newlines. Raises DataError,
    with `remedy` as what to do, if it cannot be read, or holds another number of plays than `plays`.
    """
    try:
        texts = _from_folder(path) if path.is_dir() else _from_archive(path)
    except _UNREADABLE as failure:
        raise damaged(path, f"it cannot be read ({failure})", remedy) from failure
    if len(texts) != plays:
        raise damaged(path, f"it holds {len(texts)} plays instead of {plays}", remedy)
    return {(play, speaker): text for play in sorted(texts) for speaker, text in roles(texts[play]).items()}


def roles(play: str) -> dict[str, str]:
    """Return the whole text of each speaker of one play, in the order of first speeches."""
    lines_of: dict[str, list[str]] = {}
    speaker = None
    for paragraph in _PARAGRAPHS.split(play.replace("\\", "").replace("—", "--")):
        paragraph = paragraph.strip()
        if paragraph.startswith("#"):
            speaker = None
            continue
        if begins := _SPEAKER.match(paragraph):
            speaker, paragraph = begins[1].strip(), paragraph[begins.end() :]
        lines = _lines(paragraph)
        if speaker is not None and lines:
            lines_of.setdefault(speaker, []).extend(lines)
    return {speaker: "\n".join(lines) for speaker, lines in lines_of.items()}


def _lines(paragraph: str) -> list[str]:
    spoken = _FOREIGN.sub("", _DIRECTION.sub("", paragraph))
    return [line for line in map(str.strip, spoken.split("\n")) if line]


def _from_folder(path: Path) -> dict[str, str]:
    return {file.stem: file.read_text(encoding="utf-8") for file in path.glob("*/*.md")}


def _from_archive(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        files = [name for name in archive.namelist() if PurePosixPath(name).match("plays/*/*.md")]
        return {PurePosixPath(name).stem: archive.read(name).decode("utf-8") for name in files}
