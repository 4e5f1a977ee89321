"""Values of yes-or-no keys of the schema."""

from __future__ import annotations

import pytest

import fedprune
from fedprune.errors import ConfigError


@pytest.mark.parametrize("typed", ["local.drop_last=2", "force=-1", "local.error_feedback=1000000"])
def test_a_number_is_neither_true_nor_false(typed):
    with pytest.raises(ConfigError, match=f"^{typed}: it takes true or false$"):
        fedprune.compose([typed])


@pytest.mark.parametrize(("typed", "value"), [("true", True), ("False", False), ("on", True), ("0", False), ("1", True)])
def test_these_words_are(typed, value):
    assert fedprune.compose([f"local.drop_last={typed}"]).config.local.drop_last is value


def test_a_reference_to_another_key_is_left_alone():
    assert fedprune.compose(["local.drop_last=${profile}"]).config.local.drop_last is False
