"""The command line: a face of the verbs in `commands`."""

from __future__ import annotations

from .main import main

__all__ = ["main"]
