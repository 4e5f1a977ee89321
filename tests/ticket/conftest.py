"""The command that shows and exports tickets."""

from __future__ import annotations

import sys

import pytest

from fedprune.ticket.__main__ import main


@pytest.fixture
def ticket_command(monkeypatch, capsys):
    """ticket_command(*arguments) -> (exit status, out, err) of `python -m fedprune.ticket`."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ticket", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "150")
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run
