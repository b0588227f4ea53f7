"""Verbs on files: what is in a checkpoint."""

from __future__ import annotations

from typing import Annotated

from ..formats import info as inspect_file
from ..report import terminal
from .verb import Argument, Result, verb


@verb("info", show=terminal.checkpoint, chapter="Look")
def info(
    file: Annotated[str, Argument("A checkpoint file, or a folder with one.", positional=True)],
    deep: Annotated[bool, Argument("Examine every value, also of more than 64 MB.")] = False,
    sha256: Annotated[bool, Argument("Hash the files, also of more than 64 MB.")] = False,
) -> Result:
    """What is in a checkpoint: format, modules, ties, odd values, and what would run if it were loaded the usual way.

    Nothing from the file is executed, and no torch is needed.
    """
    return inspect_file(file, deep=deep, sha256=sha256)
