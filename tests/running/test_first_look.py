"""A run from trained weights says first what its inputs are and what the network can do."""

from __future__ import annotations

import logging

import pytest
import torch

from fedprune.running.first_look import tell_start


@pytest.fixture
def told(tiny, tmp_path, caplog):
    """told(*overrides) -> (the lines, the log) of a run from the network that this repository makes of seed 3."""

    def of(*overrides):
        torch.save(tiny("seed=3").net.state_dict(), tmp_path / "net.pt")
        experiment = tiny(f"init_from.path={tmp_path / 'net.pt'}", *overrides)
        executor = experiment.executor()
        try:
            loop = experiment.loop(executor)
            with caplog.at_level(logging.WARNING):
                return tell_start(experiment, loop, loop.start()), caplog.text
        finally:
            executor.close()

    return of


def test_a_file_that_fits_and_cannot_tell_the_classes_is_warned_of(told):
    lines, log = told("data.mean=[0.5]", "data.std=[0.5]")
    assert lines[0].startswith("inputs: (x - mean) / std, mean 0.5, std 0.5 of pixels in 0..1 (x in 0..16, divided by 16)")
    assert "the loaded network before round 1: accuracy" in lines[1] and "validation examples" in lines[1]
    assert "the file fits the network, and its accuracy is near chance (10." in log  # 183 of 1,797 digits are a 3


def test_a_fresh_output_layer_is_not_evaluated(told):
    lines, log = told("init_from.head=fresh")
    assert len(lines) == 1 and "near chance" not in log
