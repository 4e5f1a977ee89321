"""Images of a user's own, one folder per class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedprune.data import cache
from fedprune.data.image_folder import image_folder
from fedprune.errors import DataError

TINY = (
    *(
        "rounds=2",
        "federated.clients=4",
        "federated.cohort=2",
        "partition=iid",
        "partition.min_examples=1",
        "local.epochs=null",
    ),
    *("local.steps=3", "local.batch_size=16", "logger=none", "executor=serial", "density=0.5"),
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "flowers"


def paint(path: Path, colour: int | tuple[int, int, int], height: int = 2, width: int = 3, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), colour).save(path)


def split(root: Path) -> None:
    """Two classes; three images to train on, two to test on."""
    paint(root / "train" / "tulip" / "1.png", (40, 0, 0))
    paint(root / "train" / "rose" / "b.png", (20, 0, 0))
    paint(root / "train" / "rose" / "deep" / "a.bmp", (30, 60, 90))
    paint(root / "test" / "rose" / "x.png", (7, 8, 9))
    paint(root / "test" / "tulip" / "y.png", (1, 2, 3))


def test_an_official_split_is_read_class_by_class(root):
    split(root)
    (root / "train" / "rose" / "notes.txt").write_text("not an image")
    paint(root / "train" / "rose" / ".hidden.png", (255, 255, 255))
    data = image_folder(str(root))
    assert data.x.shape == (3, 3, 2, 3) and data.x.dtype == torch.uint8 and data.shape == (3, 2, 3)
    assert data.x[:, :, 0, 0].tolist() == [[20, 0, 0], [30, 60, 90], [40, 0, 0]]  # rose/b.png, rose/deep/a.bmp, tulip/1.png
    assert data.y.tolist() == [0, 0, 1] and data.test_y.tolist() == [0, 1] and data.classes == 2
    assert data.test_x[:, :, 1, 2].tolist() == [[7, 8, 9], [1, 2, 3]]
    # red: 20, 30, 40: mean 30, variance (100 + 0 + 100) / 3; green: 0, 60, 0: mean 20, variance (400 + 1600 + 400) / 3
    assert data.mean == pytest.approx((30, 20, 30))
    assert data.std == pytest.approx(((200 / 3) ** 0.5, 800**0.5, 1800**0.5))


def test_without_a_split_a_fifth_of_every_class_is_held_out(root):
    for name, shade in (("a", 10), ("b", 20)):
        for number in range(10):
            paint(root / name / f"{number}.png", shade + number, mode="L")
    data = image_folder(str(root))
    assert data.x.shape == (16, 1, 2, 3)  # grey, so one channel
    assert data.y.bincount().tolist() == [8, 8] and data.test_y.bincount().tolist() == [2, 2]
    again = image_folder(str(root))
    assert torch.equal(data.x, again.x) and torch.equal(data.test_x, again.test_x)
    shades = sorted([*data.x[:, 0, 0, 0].tolist(), *data.test_x[:, 0, 0, 0].tolist()])
    assert shades == [*range(10, 30)]


def test_images_of_several_sizes_are_scaled_and_cut_if_told_to(root):
    split(root)
    paint(root / "train" / "tulip" / "2.png", (1, 1, 1), height=4, width=4)
    with pytest.raises(DataError, match=r"2.png is 4 x 4 pixels .* is 2 x 3: type data.size=\[2,3\]"):
        image_folder(str(root))
    data = image_folder(str(root), size=[2, 3])
    assert data.x.shape == (4, 3, 2, 3) and data.x[3, :, 0, 0].tolist() == [1, 1, 1]


def test_an_image_is_cut_around_its_middle(root):
    wide = np.zeros((2, 6, 3), np.uint8)
    wide[:, 2:4] = 200  # the two columns in the middle
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        Image.fromarray(wide).save(root / "train" / name / "wide.png")
        paint(root / "test" / name / "1.png", (0, 0, 0), height=2, width=2)
    assert image_folder(str(root), size=[2, 2]).x.min() == 200


def test_an_image_is_turned_as_a_camera_says(root):
    split(root)
    turned = Image.new("RGB", (2, 3), (5, 5, 5))
    exif = turned.getexif()
    exif[0x0112] = 6  # turn by a quarter to see it upright: 3 high, 2 wide becomes 2 high, 3 wide
    turned.save(root / "train" / "tulip" / "2.jpg", exif=exif)
    assert image_folder(str(root)).x.shape == (4, 3, 2, 3)


@pytest.mark.parametrize(("grey", "channels"), [(True, 1), (False, 3)])
def test_channels_can_be_chosen(root, grey, channels):
    split(root)
    data = image_folder(str(root), grey=grey)
    assert data.shape == (channels, 2, 3)
    if grey:  # ITU-R 601: 0.299 R + 0.587 G + 0.114 B: of (30, 60, 90) it is 8.97 + 35.22 + 10.26 = 54.45
        assert data.x[1, 0, 0, 0] == 54


def test_users_of_a_table_are_the_groups_of_the_training_images(root, tmp_path):
    split(root)
    table = tmp_path / "users.csv"
    table.write_text("file,user,age\ntrain/tulip/1.png,ann,3\ntrain/rose/b.png,zoe,4\ntrain/rose/deep/a.bmp,ann,5\n")
    assert image_folder(str(root), users=str(table)).groups.tolist() == [1, 0, 0]  # zoe, ann, ann
    table.write_text("file,user\ntrain/tulip/1.png,ann\n")
    with pytest.raises(DataError, match="has no row for 2 images, such as file=train/rose/b.png"):
        image_folder(str(root), users=str(table))
    table.write_text("image;user\n")
    with pytest.raises(DataError, match="needs the columns file,user"):
        image_folder(str(root), users=str(table))
    with pytest.raises(DataError, match="there is no such file"):
        image_folder(str(root), users=str(tmp_path / "nobody.csv"))


def test_files_are_decoded_once(root, monkeypatch):
    split(root)
    first = image_folder(str(root))
    assert len(list(cache.home().iterdir())) == 1
    monkeypatch.setattr("fedprune.data.image_folder._read", None)
    assert torch.equal(image_folder(str(root)).x, first.x)


def test_an_image_that_has_changed_is_read_anew(root):
    split(root)
    image_folder(str(root))
    paint(root / "train" / "tulip" / "1.png", (99, 0, 0), height=2)
    assert image_folder(str(root)).x[2, 0, 0, 0] == 99


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "train" / "rose" / "b.png").write_bytes(b"no image"), "b.png cannot be read as an image"),
        (lambda root: (root / "test" / "daisy").mkdir(), "test/ has classes that train/ has not: daisy"),
        (lambda root: (root / "train" / "empty").mkdir(), "there is no image in .*train/empty"),
        (lambda root: Image.new("I;16", (3, 2)).save(root / "train" / "rose" / "x.png"), "x.png has more than 8 bits"),
    ],
)
def test_what_cannot_be_read_is_named(root, spoil, says):
    split(root)
    spoil(root)
    with pytest.raises(DataError, match=says):
        image_folder(str(root))


def test_a_cut_off_image_is_named(root):
    split(root)
    noise = np.random.default_rng(0).integers(0, 255, (2, 3, 3), np.uint8)
    path = root / "train" / "rose" / "c.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"c.jpg cannot be read as an image .*: replace or delete it"):
        image_folder(str(root))


def test_images_that_cannot_be_read_are_left_out_by_choice(root, tmp_path, caplog):
    split(root)
    paint(root / "train" / "rose" / "good.png", (1, 2, 3))
    (root / "train" / "rose" / "b.png").write_bytes(b"no image")
    (root / "train" / "rose" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a.png cannot .* and 1 more cannot either \(.*b.png\): .* data.unreadable=leave_out"):
        image_folder(str(root))
    table = tmp_path / "users.csv"
    table.write_text("file,user\ntrain/tulip/1.png,ann\ntrain/rose/good.png,zoe\ntrain/rose/deep/a.bmp,ann\n")
    data = image_folder(str(root), unreadable="leave_out", users=str(table))
    assert data.y.tolist() == [0, 0, 1] and data.x[:, 0, 0, 0].tolist() == [30, 1, 40]
    assert data.users == ("ann", "zoe") and data.groups.tolist() == [0, 1, 0]
    assert "left out: " in caplog.text and "a.png" in caplog.text and "b.png" in caplog.text
    (root / "train" / "tulip" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="leaves a class without images"):
        image_folder(str(root), unreadable="leave_out")
    with pytest.raises(DataError, match="type data.unreadable=stop"):
        image_folder(str(root), unreadable="skip")


def test_no_folder_and_no_classes_are_said(root):
    with pytest.raises(DataError, match=r"there is no folder .*flowers; type data.root=FOLDER"):
        image_folder(str(root))
    root.mkdir()
    with pytest.raises(DataError, match="at least two classes and has 0: none"):
        image_folder(str(root))


def test_a_run_on_images_of_ones_own(root, perform):
    for name, shade in (("dark", 30), ("light", 220)):
        for number in range(40):
            paint(root / name / f"{number}.png", shade + number % 7, height=8, width=8, mode="L")
    here = root.parent
    result = perform(here, "data=image_folder", f"data.root={root}", "model=lenet_300_100", *TINY, "eval_every=1")
    assert result.rc == 0, result.text
    rows = [json.loads(line) for line in next(here.rglob("metrics.jsonl")).read_text().splitlines()]
    assert rows[-1]["test/accuracy"] == 1.0  # dark and light: what has been read can be told apart
