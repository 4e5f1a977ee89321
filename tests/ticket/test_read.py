"""A ticket comes back as it was saved; a file that is none is refused by name; showing it says what it is."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedprune.errors import DataError, RunError
from fedprune.storage.checkpoint import save_state, save_ticket, write
from fedprune.ticket.read import load_ticket
from fedprune.ticket.show import draw, picture
from fedprune.types import State, Subnet

AXES = {"what": "weights_global", "criterion": "magnitude", "model": "small", "data": "digits"}
PROVENANCE = {"name": "lth", "seed": "3", "axes": json.dumps(AXES)}


def params() -> dict[str, torch.Tensor]:
    return {"fc1.weight": torch.arange(6.0).view(3, 2), "fc1.bias": torch.ones(3), "fc2.weight": torch.ones(2, 3)}


def mask() -> dict[str, torch.Tensor]:
    alive = torch.ones(3, 2, dtype=torch.bool)
    alive[0] = False
    alive[1, 0] = False
    return {"fc1.weight": alive, "fc2.weight": torch.ones(2, 3, dtype=torch.bool)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "job" / "ticket.safetensors"
    save_ticket(params(), mask(), PROVENANCE, path)
    return path


def test_a_ticket_is_read_from_its_file_or_from_its_folder(path, equal):
    for given in (path, path.parent, str(path)):
        ticket = load_ticket(given)
        assert equal(ticket.params, params()) and equal(ticket.mask, mask())
        assert ticket.axes == AXES and ticket.density == 9 / 12 and ticket.path == path


class Evil:
    """Leaves a trace if it is unpickled."""

    def __reduce__(self):
        return open, ("trace", "w")


def spoil(path: Path, how: str) -> None:
    content, weights = path.read_bytes(), params()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif how == "garbage":
        path.write_bytes(os.urandom(500))
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif how == "torch.save":
        torch.save(weights, path)
    elif how == "tensors of another tool":
        save_file(weights, path)
    elif how == "a checkpoint":
        save_state(State(Subnet(weights, mask()), init=weights, ticket=weights), path)
    elif how == "no provenance":
        save_ticket(weights, mask(), {"name": "x"}, path)
    elif how == "axes":
        save_ticket(weights, mask(), {"axes": "{"}, path)
    elif how == "order":
        save_file(weights, path, {"order": "3", "axes": "{}"})
    elif how == "mask of another shape":
        save_ticket(weights, mask() | {"fc2.weight": torch.ones(2, 2, dtype=torch.bool)}, PROVENANCE, path)
    elif how == "mask of numbers":
        save_ticket(weights, {"fc2.weight": torch.ones(2, 3)}, PROVENANCE, path)
    elif how == "mask of nothing":
        save_ticket(weights, {"fc9.weight": torch.ones(2, 3, dtype=torch.bool)}, PROVENANCE, path)
    elif how == "not a number":
        save_ticket(weights | {"fc1.bias": torch.tensor([0.0, torch.nan, 1.0])}, mask(), PROVENANCE, path)
    elif how == "another group":
        write({"params": weights, "mask": mask(), "owner": weights}, PROVENANCE, path)


FOREIGN = [
    "empty",
    "torn",
    "garbage",
    "pickle",
    "torch.save",
    "tensors of another tool",
    "a checkpoint",
    "no provenance",
    "axes",
]
FOREIGN += ["order", "mask of another shape", "mask of numbers", "mask of nothing", "not a number", "another group"]


@pytest.mark.parametrize("how", FOREIGN)
def test_a_foreign_or_damaged_file_is_refused_by_name_and_runs_nothing(how, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    spoil(path, how)
    with pytest.raises(DataError) as caught:
        load_ticket(path)
    assert str(path) in str(caught.value)
    assert "damaged" in str(caught.value) or "not a ticket" in str(caught.value)
    assert not Path("trace").exists()


def test_a_file_that_is_not_there_is_named_with_what_to_give(tmp_path):
    with pytest.raises(DataError, match=r"there is no ticket .*nowhere.*: give the ticket.safetensors of a finished run"):
        load_ticket(tmp_path / "nowhere")


# --- show ------------------------------------------------------------------------------------------------------------------


def test_show_tells_where_it_comes_from_its_densities_and_where_the_picture_is(path, ticket_command, tmp_path):
    rc, out, _ = ticket_command("show", path.parent)
    assert rc == 0
    assert "lth: weights_global · magnitude" in out and "model small, data digits" in out and "seed 3" in out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert cells[0] == ["fc1", "3x2", "3", "6", "0.5", "1 of 3"]
    assert cells[2] == ["all of these", "", "9", "12", "0.75", ""]
    assert cells[3] == ["never pruned", "", "3", "3", "1", ""]
    assert (path.parent / "ticket.png").read_bytes().startswith(b"\x89PNG")
    assert str(path.parent / "ticket.png") in out
    assert ticket_command("show", path, "--into", tmp_path / "pictures")[0] == 0
    assert (tmp_path / "pictures" / "ticket.png").exists()


def test_the_picture_has_a_panel_for_each_layer_dark_where_it_is_alive(path):
    first, second, bar = picture(load_ticket(path)).axes
    assert first.get_title() == "fc1: 50 % alive" and second.get_title() == "fc2: 100 % alive"
    assert first.images[0].get_array().tolist() == [[0, 0], [0, 1], [1, 1]]
    assert bar.get_ylabel() == "fraction alive"


def test_a_large_mask_is_drawn_as_fractions(tmp_path):
    alive = torch.zeros(640, 320, dtype=torch.bool)
    alive[::2] = True
    save_ticket({"w": torch.ones(640, 320)}, {"w": alive}, PROVENANCE, tmp_path / "t.safetensors")
    image = picture(load_ticket(tmp_path / "t.safetensors")).axes[0].images[0].get_array()
    assert image.shape == (320, 320) and (image == 0.5).all()


def test_a_ticket_without_masks_has_no_picture(path):
    save_ticket(params(), {}, PROVENANCE, path)
    with pytest.raises(RunError, match="no masks to draw"):
        draw(load_ticket(path))


def test_show_refuses_in_one_line(path, ticket_command):
    spoil(path, "pickle")
    rc, _, err = ticket_command("show", path)
    assert rc == 1 and err.count("\n") == 1 and str(path) in err
