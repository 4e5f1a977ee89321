"""The recordings of a smartwatch: split by hand, cut by hand, read without running code; damaged files by name."""

import pickle
import zipfile
from typing import Any

import numpy as np
import pytest
import torch

from fedprune.data.federate import federate
from fedprune.data.partition import Natural
from fedprune.data.series import watch, windows
from fedprune.errors import ConfigError, DataError
from helpers.watch_wheel import STEPS, WHEEL, recordings, write, written


def test_one_arm_of_a_subject_and_exercise_is_tested_on_and_a_window_is_as_by_hand(tmp_path):
    write(tmp_path)
    data = watch(str(tmp_path), steps=3)
    # 7 steps are two windows of 3. Subject 3 is odd and subject 8 even: of exercise 0, subject 3 is tested with arm 1 and
    # subject 8 with arm 0; of exercise 1, the other way round. The first number of a window tells its recording and step.
    assert data.test_x[:, 0, 0, 0].tolist() == [3010, 3013, 3100, 3103, 8000, 8003, 8110, 8113]
    assert data.x[:, 0, 0, 0].tolist() == [3000, 3003, 3110, 3113, 8010, 8013, 8100, 8103]
    assert data.x.shape == (8, 6, 1, 3) and data.x.dtype == torch.float32
    assert torch.allclose(data.x[1, 4, 0], torch.tensor([3003.4, 3004.4, 3005.4]))
    assert data.y.tolist() == data.test_y.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert data.groups.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (data.users, data.class_names, data.classes) == (("subject 3", "subject 8"), ("PEN", "ABD"), 2)


def test_training_windows_standardise_and_subjects_are_clients(tmp_path):
    write(tmp_path)
    data = watch(str(tmp_path), steps=1)
    normal = data.normalise(data.x)
    assert normal.mean((0, 2, 3)).abs().max() < 1e-3 and (normal.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-3
    clients = federate(data, Natural(min_examples=1, val=0.0, test=0.0), clients=2, seed=0)
    assert [len(part) for part in clients.train] == [14, 14]


def test_a_window_has_the_axes_first():
    cut = windows(np.arange(12, dtype=np.float32).reshape(6, 2), 2)  # two axes: 0, 2, 4, ... and 1, 3, 5, ...
    assert cut.tolist() == [[[[0, 2]], [[1, 3]]], [[[4, 6]], [[5, 7]]], [[[8, 10]], [[9, 11]]]]


def test_the_unpacked_wheel_is_as_good(tmp_path):
    zipfile.ZipFile(write(tmp_path)).extractall(tmp_path / "watch")
    (tmp_path / WHEEL).unlink()
    assert len(watch(str(tmp_path), steps=3).x) == 8


def test_without_the_file_the_message_says_what_to_type(tmp_path):
    with pytest.raises(DataError, match=rf"data=watch: {WHEEL} .*type `pip download --no-deps seglearn==1.2.5` in "):
        watch(str(tmp_path))


@pytest.mark.parametrize(("steps", "says"), [(0, "type a whole number from 1"), (8, "type 7 or less")])
def test_a_length_that_no_recording_has_is_refused(tmp_path, steps, says):
    write(tmp_path)
    with pytest.raises(ConfigError, match=f"data.steps={steps} .*{says}"):
        watch(str(tmp_path), steps=steps)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("this ran",))


def without(number: int) -> dict[str, Any]:
    return {name: value if name == "y_labels" else value[:number] for name, value in recordings().items()}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read"),
        (written(recordings())[:-40], "cannot be read"),
        (written(recordings())[:128] + pickle.dumps(Trap()), "cannot be read .*which no array needs and which was not run"),
        (written([1, 2]), "cannot be read"),
        (written({"X": []}), "cannot be read"),
        (written(without(7)), "not one recording of each subject, exercise and arm"),
        (written(without(0)), "not one recording of each subject, exercise and arm"),
        (written({**recordings(), "X": [np.zeros((STEPS, 5))] * 8}), "recording 0 is not a table of numbers with 6 columns"),
        (written({**recordings(), "X": [np.full((STEPS, 6), np.nan)] * 8}), "recording 0 is not a table of numbers"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, content, says):
    write(tmp_path, content)
    with pytest.raises(DataError, match=rf"(?s){WHEEL} is damaged: .*{says}.*Delete it and type `pip download"):
        watch(str(tmp_path), steps=3)
