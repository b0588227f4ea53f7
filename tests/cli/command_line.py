"""Runs command lines in this process and hands back what they printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from cutaway.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


class CommandLine:
    """Runs `cutaway ARGUMENTS…`."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str) -> Outcome:
        self._capture.readouterr()
        status = main(arguments)
        return Outcome(status, *self._capture.readouterr())

    def json(self, *arguments: str) -> Any:
        """The result as data; fails when there is none."""
        outcome = self(*arguments, "--json")
        assert outcome.status == 0, outcome.out
        assert outcome.err == ""
        return outcome.data
