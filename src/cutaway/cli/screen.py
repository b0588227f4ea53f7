"""What reaches the terminal: results, errors, and progress. Nothing that comes from a file can control the terminal."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..commands import listening

PLAIN_WIDTH = 100  # where the output is no terminal, so that files and pipes look the same everywhere
_CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def console(*, stderr: bool = False) -> Console:
    """A console that takes text literally: no markup, no emoji codes, no guessing of colours."""
    file = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def visible(data: Any) -> Any:
    """Data whose texts hold no control or invisible characters but line breaks and tabs; others are shown as codes."""
    if isinstance(data, str):
        return data if data.isascii() and data.isprintable() else "".join(map(_character, data))
    if isinstance(data, dict):
        return {visible(key): visible(value) for key, value in data.items()}
    return [visible(item) for item in data] if isinstance(data, list) else data


def _character(character: str) -> str:
    harmless = character in "\n\t" or unicodedata.category(character) not in _CONTROLS
    return character if harmless else f"\\u{ord(character):04x}"


def print_json(data: Any) -> None:
    """One JSON object, in ASCII."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


def show(renderable: RenderableType) -> None:
    """A result for people."""
    console().print(renderable)


def complain(sentence: str) -> None:
    """One sentence on stderr."""
    sys.stderr.write(f"cutaway: {' '.join(visible(sentence).split())}\n")


@contextmanager
def progress() -> Iterator[None]:
    """Show reported progress on stderr while the block runs, if that is a terminal; it leaves no trace."""
    if not sys.stderr.isatty():
        yield
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None, visible=False)

        def hear(stage: str, done: int, of: int) -> None:
            bars.update(task, description=stage, completed=done, total=of, visible=True)

        with listening(hear):
            yield
