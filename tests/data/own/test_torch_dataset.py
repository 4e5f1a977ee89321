"""Any torch data set is read once into tensors, and what does not fit is said."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from fedprune.data.own.hugging_face import hugging_face
from fedprune.data.own.torch_dataset import torch_dataset
from fedprune.errors import DataError

MINE = """
import torch

class Blobs(torch.utils.data.Dataset):
    '''Two clouds of points.'''

    def __init__(self, size, seed=0):
        stream = torch.Generator().manual_seed(seed)
        self.y = torch.arange(size) % 2 + 1
        self.x = torch.randn(size, 4, generator=stream, dtype=torch.float64) + 2 * (2 * self.y[:, None] - 3)
        self.writer = [f"w{number // 2 % 4}" for number in range(size)]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, number):
        return self.x[number], self.y[number]
"""


def pairs(*examples):
    return list(examples)


def test_inputs_become_tensors_of_one_type():
    x = torch.arange(6, dtype=torch.float64).view(3, 2)
    data = torch_dataset(TensorDataset(x, torch.tensor([0, 1, 1])), TensorDataset(x[:1], torch.tensor([1])))
    assert data.x.dtype == torch.float32 and data.x.tolist() == x.tolist() and data.y.tolist() == [0, 1, 1]
    assert (data.classes, data.shape, data.test_y.tolist(), data.mean) == (2, (2,), [1], ())


def test_images_are_bytes_with_their_channels_first():
    red = Image.new("RGB", (3, 2), (10, 0, 0))  # 3 wide, 2 high
    dark = Image.new("RGB", (3, 2), (30, 0, 0))
    data = torch_dataset(pairs((red, "b"), (dark, "a")), pairs((red, "a")))
    assert data.x.shape == (2, 3, 2, 3) and data.x.dtype == torch.uint8
    assert data.y.tolist() == [1, 0] and data.test_y.tolist() == [0] and data.classes == 2  # a, b
    assert data.mean == pytest.approx((20, 0, 0)) and data.std == pytest.approx((10, 1, 1))  # of 10 and 30
    grey = torch_dataset(
        pairs((Image.new("L", (3, 2), 7), 0), (np.zeros((2, 3), np.uint8), 1)), pairs((torch.zeros(2, 3).byte(), 1))
    )
    assert grey.shape == (1, 2, 3)


def test_a_fifth_is_held_out_and_users_are_an_attribute_of_the_set():
    train = TensorDataset(torch.zeros(20, 2), torch.arange(20) % 2)
    train.owner = ["ann", "bob"] * 10
    data = torch_dataset(train, users="owner")
    assert (len(data.y), data.test_y.bincount().tolist()) == (16, [2, 2])
    assert data.users == ("ann", "bob") and torch.equal(data.groups, data.y)
    train.owner = ["ann"]
    with pytest.raises(DataError, match="there are 1 users for 20 training examples"):
        torch_dataset(train, users="owner")
    with pytest.raises(DataError, match="data.users=whose: the training set has no such attribute"):
        torch_dataset(train, users="whose")


def test_labels_are_numbered_on_request_and_real_numbers_are_a_regression():
    train = pairs(([0.0], 1), ([1.0], 10), ([2.0], 7))
    with pytest.raises(DataError, match=r"labels are 1, 7, 10, 3 different ones.*type data.renumber=true"):
        torch_dataset(train, train)
    data = torch_dataset(train, train, renumber=True)
    assert data.y.tolist() == [0, 2, 1] and data.test_y.tolist() == [0, 2, 1] and data.classes == 3
    real = torch_dataset(pairs(([0.0], np.float64(1.5)), ([1.0], 2.5)), pairs(([0.0], 0.5)))
    assert real.y.dtype == torch.float32 and real.classes == 1
    several = torch_dataset(pairs(([0.0], [1.5, 2.0]), ([1.0], [2.5, 0.0])), pairs(([0.0], [1.0, 1.0])))
    assert several.classes == 2 and several.y.shape == (2, 2)


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        ([1.0, 3.0, 1.0], [0, 1, 0], ("1", "3")),  # whole numbers that are stored as floats
        ([-1, 1, -1], [0, 1, 0], ("-1", "1")),
        ([[0, 1], [1, 0], [0, 1]], [1, 0, 1], ("0", "1")),  # one-hot
        ([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], [1, 0, 1], ("0", "1")),
    ],
)
def test_renumbered_labels(labels, numbers, names):
    train = [([0.0, 1.0, 2.0], label) for label in labels]
    data = torch_dataset(train, train, renumber=True)
    assert (data.y.tolist(), data.classes, data.class_names) == (numbers, 2, names)


def test_rows_of_zeros_and_ones_are_several_labels_of_an_example():
    train = [([0.0, 1.0, 2.0], [1, 1]), ([0.0, 1.0, 2.0], [0, 1])]
    data = torch_dataset(train, train)
    assert data.y.dtype == torch.float32 and data.y.tolist() == [[1, 1], [0, 1]] and data.classes == 2
    places = torch_dataset([([0, 1], [1, 1])], [([0, 1], [1, 0])])  # a label for each place of a sequence
    assert places.y.dtype == torch.int64


def test_classes_have_the_names_of_words_or_those_of_the_data_set():
    words = [([0.0], "dog"), ([1.0], "cat")]
    assert torch_dataset(words, words).class_names == ("cat", "dog")
    named = TensorDataset(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert torch_dataset(named, named).class_names == ()
    named.classes = ["plane", "car"]
    assert torch_dataset(named, named).class_names == ("plane", "car")
    named.classes = ["plane"]
    assert torch_dataset(named, named).class_names == ()


def test_examples_with_missing_numbers_stop_or_go():
    train = TensorDataset(torch.tensor([[0.0], [float("nan")], [2.0], [3.0]]), torch.tensor([0, 1, 1, 0]))
    train.owner = ["ann", "bob", "cid", "ann"]
    test = TensorDataset(torch.ones(1, 1), torch.ones(1).long())
    with pytest.raises(DataError, match=r"data.train: 1 of 4 examples .* the first is example 1: .* type data.missing=drop"):
        torch_dataset(train, test)
    data = torch_dataset(train, test, users="owner", missing="drop")
    assert (data.x.flatten().tolist(), data.y.tolist()) == ([0, 2, 3], [0, 1, 0])
    assert [data.users[number] for number in data.groups] == ["ann", "cid", "ann"]
    with pytest.raises(DataError, match=r"data.test: 1 of 1 examples"):
        torch_dataset(test, [([0.0], float("inf"))])
    with pytest.raises(DataError, match="drop leaves no example of data.train"):
        torch_dataset([([float("inf")], 0)], missing="drop")
    with pytest.raises(DataError, match="data.missing=keep: type data.missing=stop or data.missing=drop"):
        torch_dataset(train, missing="keep")


def test_a_class_that_only_test_examples_have_is_refused():
    train, test = [([0.0], 0), ([1.0], 1)], [([0.0], 2)]
    with pytest.raises(DataError, match="only test examples have class 2, .* type data.test=null"):
        torch_dataset(train, test)


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ("things.Mine", r"data.train=things.Mine is a text and no data set: type \+data.train._target_=things.Mine"),
        (None, r"type \+data.train._target_=MODULE.CLASS"),
        (torch_dataset, "is a function and no data set: leave out data.train._partial_"),
        ([], "data.train has no examples"),
        ([{"image": 1, "label": 0}], r"example 0 is a dict of 2: let __getitem__ return \(input, label\)"),
        (
            [(torch.zeros(2), 0), (torch.zeros(3), 0)],
            r"example 1 is of shape \[3\], and of example 0 \[2\]: bring all to one shape",
        ),
        ([(torch.zeros(2), 0), (torch.zeros(2).long(), 0)], "example 1 is of type int64, and of example 0 float32: convert"),
        ([("a text", 0)], "is a text, 'a text': let the data set give the numbers"),
        ([(object(), 0)], "is a object, which is no tensor, array or image"),
        (
            [(torch.zeros(4).byte(), 0)],
            r"bytes of shape \[4\], which are no images: return x.float\(\) for numbers, or x.long\(\)",
        ),
        ([(torch.zeros(4).cfloat(), 0)], "is complex"),
        ([([0.0], [1, 2]), ([0.0], [1])], "labels are of several shapes"),
    ],
)
def test_what_does_not_fit_is_said(train, says):
    with pytest.raises(DataError, match=says):
        torch_dataset(train)


def test_train_and_test_have_to_be_alike():
    with pytest.raises(DataError, match=r"inputs are float32 \[2\] to train on and float32 \[3\] to test on: make them alike"):
        torch_dataset(pairs((torch.zeros(2), 0)), pairs((torch.zeros(3), 0)))


def test_a_run_on_a_torch_data_set(tmp_path, perform, monkeypatch):
    (tmp_path / "blobs_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    typed = (
        *(
            "data=dataset",
            "+data.train._target_=blobs_of_mine.Blobs",
            "+data.train.size=200",
            "+data.test._target_=blobs_of_mine.Blobs",
        ),
        *(
            "+data.test.size=40",
            "+data.test.seed=1",
            "data.users=writer",
            "partition=natural",
            "model=mlp",
            "federated.clients=4",
        ),
        *(
            "federated.cohort=4",
            "rounds=8",
            "eval_every=8",
            "local.batch_size=8",
            "local.optimizer.lr=0.05",
            "logger=none",
            "executor=serial",
        ),
    )
    refused = perform(tmp_path, *typed)
    assert refused.rc == 1 and "type data.renumber=true" in refused.text
    result = perform(tmp_path, *typed, "data.renumber=true")
    assert result.rc == 0, result.text
    rows = [json.loads(line) for line in next(tmp_path.rglob("metrics.jsonl")).read_text().splitlines()]
    assert rows[-1]["test/accuracy"] > 0.9


class Split(list):
    """As a datasets.Dataset: rows by number, columns by name."""

    column_names = ("image", "label", "writer")
    features = {"label": SimpleNamespace()}  # noqa: RUF012 (as that of a column without names)

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def saved(monkeypatch, splits):
    def load_from_disk(path):
        if path == "nowhere":
            raise FileNotFoundError("Directory nowhere not found")
        return splits

    monkeypatch.setitem(__import__("sys").modules, "datasets", SimpleNamespace(load_from_disk=load_from_disk))


def test_a_hugging_face_data_set_by_its_columns(monkeypatch):
    rows = Split({"image": Image.new("L", (2, 2), 9 * k), "label": k % 2, "writer": f"w{k % 3}"} for k in range(6))
    saved(monkeypatch, {"train": rows, "test": Split(rows[:2])})
    rows.features = {"label": SimpleNamespace(names=["odd", "even"])}
    data = hugging_face("folder", users="writer")
    assert data.class_names == ("odd", "even")
    assert data.x.shape == (6, 1, 2, 2) and data.y.tolist() == [0, 1, 0, 1, 0, 1] and data.groups.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(data.test_y) == 2
    for options, says in (
        ({}, "data.input is not given: choose one of image, label, writer: type data.input=image"),
        ({"label": "lable"}, "data.label=lable: the data set has no such column"),
        ({"users": "user", "input": "image"}, "data.users=user: the data set has no such column"),
        ({"train": "training"}, "data.train=training: the data set has no such split: choose one of train, test"),
    ):
        with pytest.raises(DataError, match=says):
            hugging_face("folder", **options)
    with pytest.raises(DataError, match="is no folder that save_to_disk has written .*: type data.path=FOLDER"):
        hugging_face("nowhere")
    saved(monkeypatch, rows)
    assert len(hugging_face("folder", input="image").test_y) == 1


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match="type `pip install datasets`"):
        hugging_face("folder")
    with pytest.raises(DataError, match="type data.path=FOLDER"):
        hugging_face()


def test_a_real_one_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra hugging_face is not installed")
    rows = {"image": [[float(k), 0.0] for k in range(10)], "label": [k % 2 for k in range(10)]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "saved")
    data = hugging_face(str(tmp_path / "saved"))
    assert data.shape == (2,) and (len(data.y), len(data.test_y), data.classes) == (8, 2, 2)
