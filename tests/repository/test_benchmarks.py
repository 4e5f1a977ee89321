"""What the benchmarks rest on: the peers' networks and data are ours, nobody wins by doing less, and the page has a place for
what is measured. Nothing is timed here."""

import importlib
import re
import runpy
from pathlib import Path

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

ROOT = Path(__file__).parents[2]
MODELS = ("lenet5", "lenet_300_100", "cnn_fedavg")


@pytest.fixture(autouse=True)
def _paths(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "peers")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def module(name):
    return importlib.import_module(name)


def net(model):
    from fedprune.models import cnn, lenet

    return getattr(lenet if model.startswith("lenet") else cnn, model)((1, 28, 28), 10)


@pytest.mark.parametrize("model", MODELS)
def test_a_peers_network_is_ours(model):
    ours, theirs = net(model), module("networks").NETWORKS[model]()
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # biases too
    vector_to_parameters(parameters_to_vector(ours.parameters()), theirs.parameters())
    x = torch.randn(5, 1, 28, 28)
    torch.testing.assert_close(theirs(x), ours(x))


def job(model="lenet5", limit=None):
    x, y = torch.randn(90, 1, 28, 28), torch.randint(10, (90,))
    orders = [[torch.randperm(90)[:n] for n in sizes] for sizes in ((40, 33, 1), (64, 32, 7))]
    return module("job").Job(model, x, y, parameters_to_vector(net(model).parameters()).detach(), orders, limit)


def test_steps_of_a_round():
    assert [job().steps(number) for number in (0, 1)] == [2 + 2 + 1, 2 + 1 + 1]  # batches of 32


def test_what_is_written_for_the_peers_is_the_job(tmp_path):
    written = job(limit=0)
    written.write(tmp_path)
    given = module("given").read(str(tmp_path))
    assert (given.model, given.batch, given.lr, given.momentum, given.limit) == ("lenet5", 32, 0.05, 0.9, 0)
    for number, orders in enumerate(written.orders):
        assert given.examples(number) == [len(order) for order in orders]
        assert all(torch.equal(given.indices(number, place), order) for place, order in enumerate(orders))
    assert torch.equal(given.inputs, written.inputs)
    assert torch.equal(given.labels, written.labels)
    assert torch.equal(parameters_to_vector(given.net().parameters()), written.begin)


def test_the_floor_is_plain_sgd_and_its_mean_is_weighted_by_examples(monkeypatch):
    floor = module("floor")
    monkeypatch.setattr(floor, "COHORT", 3)
    work, begin = job(), net("lenet5")
    vector_to_parameters(work.begin.clone(), begin.parameters())
    first = begin.conv1.weight
    alive = (torch.rand_like(first) < 0.5).float()
    bare = floor.Floor(begin, work, workers=1, masks={"conv1.weight": alive})
    try:
        bare.train(0)
        mean = bare.parameters(0)
    finally:
        bare.close()
    expected = sum(len(order) * trained(work, order, alive) for order in work.orders[0]) / (40 + 33 + 1)
    torch.testing.assert_close(mean, expected)
    assert bool((mean[: first.numel()].view_as(first)[alive == 0] == 0).all())


def trained(work, order, alive):
    """One epoch by hand: v <- 0.9 v + g, w <- w - 0.05 v, and the first tensor under its mask."""
    one = net("lenet5")
    vector_to_parameters(work.begin.clone(), one.parameters())
    one.conv1.weight.data.mul_(alive)
    velocity = [torch.zeros_like(p) for p in one.parameters()]
    for batch in order.split(32):
        loss = torch.nn.functional.cross_entropy(one(work.inputs[batch]), work.labels[batch])
        for parameter, v, g in zip(one.parameters(), velocity, torch.autograd.grad(loss, one.parameters()), strict=True):
            parameter.data.sub_(v.mul_(0.9).add_(g), alpha=0.05)
        one.conv1.weight.data.mul_(alive)
    return parameters_to_vector(one.parameters()).detach()


def test_the_bare_step_that_masks_are_measured_against_is_plain_sgd():
    work, bare = job(), net("lenet5")
    vector_to_parameters(torch.zeros_like(work.begin), bare.parameters())
    vector_to_parameters(work.begin.clone(), (begin := net("lenet5")).parameters())
    order = work.orders[0][0]
    module("sparse").train(bare, begin.state_dict(), [(work.inputs[batch], work.labels[batch]) for batch in order.split(32)])
    expected = trained(work, order, torch.ones_like(begin.conv1.weight))
    torch.testing.assert_close(parameters_to_vector(bare.parameters()).detach(), expected)


@pytest.mark.parametrize("held", [False, True])
def test_messages_are_held_against_the_bound_in_bytes(held):
    codecs = runpy.run_path(str(ROOT / "benchmarks" / "codecs.py"))  # Python has a module of that name
    alive = torch.rand(codecs["SHAPE"], generator=torch.Generator().manual_seed(0)) < 0.1
    _, ratio = codecs["messages"](codecs["subnet_of"](alive.numpy()), held, repeats=1)
    assert 1 < ratio < float(codecs["RATIO"])


def test_who_does_less_is_told():
    rounds = module("rounds")
    floor = rounds.Measured([1.0], 0.0, {5: 0.70, 10: 0.80})
    fine = rounds.Measured([1.0], 0.009, {5: 0.705, 10: 0.795})
    lazy = rounds.Measured([0.5], 0.5, {5: 0.70, 10: 0.75})
    masked = rounds.Measured([1.0], 0.0, {5: 0.40, 10: 0.50})
    found = {rounds.FLOOR: floor, rounds.MASKED_FLOOR: masked, rounds.DENSE: fine, rounds.MASKED: masked}
    assert rounds.problems("lenet5", found) == []
    assert [re.split("[,:] (at|more)", line)[0] for line in rounds.problems("lenet5", found | {"Flower": lazy})] == [
        "lenet5: after a round Flower is 0.5 apart from the floor",
        "lenet5: after 10 rounds Flower has an accuracy of 0.750 and the floor of 0.800",
    ]
    assert len(rounds.problems("lenet5", found | {rounds.MASKED: fine})) == 2  # as accurate as the dense floor, so not masked


def test_ratios_leave_the_warm_up_out():
    rounds = module("rounds")
    found = {"fedprune": rounds.Measured([9.0, 9.0, 3.0, 4.0, 6.0]), "floor": rounds.Measured([1.0, 1.0, 2.0, 2.0, 2.0])}
    assert rounds.against_another("lenet5", "fedprune", "floor", found) == ["2.000 (1.750-2.500)", "1.05"]


def test_a_table_is_aligned_markdown():
    printed = module("table").table(("who", "ms"), [["floor", "1.5"], ["us", "10.25"]])
    assert printed.splitlines() == ["| who   |    ms |", "| ----- | ----: |", "| floor |   1.5 |", "| us    | 10.25 |"]


def test_filling_a_place_leaves_the_rest_of_the_page():
    filled = module("fill").filled
    page = "a\n<!-- one -->\nold\n<!-- /one -->\nb\n<!-- two -->\n<!-- /two -->\nc\n"
    once = filled(page, "one", "| new |\n")
    assert once == "a\n<!-- one -->\n\n| new |\n\n<!-- /one -->\nb\n<!-- two -->\n<!-- /two -->\nc\n"
    assert filled(once, "one", "| new |\n") == once
    with pytest.raises(SystemExit, match="no place for three"):
        filled(page, "three", "")


def test_the_page_has_a_place_for_every_benchmark_and_make_performance_fills_it():
    makefile, page = (ROOT / "Makefile").read_text(), (ROOT / "docs" / "performance.md").read_text()
    (names,) = re.findall(r"^BENCHMARKS := (.*)$", makefile, re.MULTILINE)
    assert "fill.py docs/performance.md $(BENCHMARKS)" in makefile
    assert names.split() == re.findall(r"^<!-- (\w+) -->$", page, re.MULTILINE)
    commands = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text().splitlines()[-2]}
    assert set(names.split()) == commands - {"fill", "structure"}  # these two measure no speed
    for name in names.split():
        explained, _ = page.split(f"<!-- {name} -->\n")
        assert f"(../benchmarks/{name}.py)" in explained
        module("fill").filled(page, name, "")


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_benchmarks_that_are_named_exist(name):
    named = set(re.findall(r"benchmarks/[\w/]+\.py", (ROOT / name).read_text()))
    assert {path for path in named if not (ROOT / path).is_file()} == set()


def test_memory_counts_the_descendants_and_shared_pages_once():
    processes = module("processes")
    import multiprocessing
    import os

    held, before = torch.ones(16 * 2**20 // 4), processes.memory(os.getpid())  # 16 MB
    release = multiprocessing.get_context("fork").Event()
    child = multiprocessing.get_context("fork").Process(target=release.wait)
    child.start()
    try:
        assert child.pid in processes.tree(os.getpid())
        assert abs(processes.memory(os.getpid()) - before) < 12
    finally:
        release.set()
        child.join()
    assert held.sum() > 0
    assert processes.memory(child.pid) == 0
