"""Verbs on files: what is in a checkpoint."""

from __future__ import annotations

from typing import Annotated

from ..formats import info as inspect_file
from ..report import terminal
from .verb import Argument, Result, verb


@verb("info", show=terminal.checkpoint, chapter="Look")
def info(
    file: Annotated[str, Argument("A checkpoint file, or a folder with one.", positional=True)],
    sha256: Annotated[bool, Argument("Hash the files.")] = False,
    scan: Annotated[bool, Argument("Read every value; count NaN and infinities, find equal tensors.")] = False,
) -> Result:
    """What is in a checkpoint: format, tensors, ties, risks.

    Nothing from the file is executed, and no torch is needed.
    """
    return inspect_file(file, sha256=sha256, scan=scan)
