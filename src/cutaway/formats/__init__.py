"""Checkpoint files, opened without executing anything: `open_checkpoint` and `info`.

Everything raises `FormatError` with one sentence. No torch is needed, and none is imported.
"""

from __future__ import annotations

from cutaway.formats.checkpoint import Checkpoint, Risk, TensorInfo
from cutaway.formats.inspection import info
from cutaway.formats.opening import open_checkpoint

__all__ = ["Checkpoint", "Risk", "TensorInfo", "info", "open_checkpoint"]
