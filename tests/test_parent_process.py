"""Whether a process lives, as Linux says it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedprune.parent_process import began, lives

NAME = Path("/proc/self/comm")


@pytest.mark.skipif(not NAME.exists(), reason="Linux has /proc")
def test_a_process_whose_name_is_cut_within_a_letter_is_looked_at_as_any_other():
    before, since = NAME.read_bytes(), began(os.getpid())
    NAME.write_bytes("fourteen bytesé".encode()[:15])  # Linux keeps 15 bytes of a name
    try:
        assert (lives(os.getpid()), began(os.getpid())) == (True, since)
        assert since.isdecimal()
    finally:
        NAME.write_bytes(before.strip())
