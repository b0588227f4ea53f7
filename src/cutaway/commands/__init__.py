"""The verbs of Cutaway, each declared once (see `verb`).

Importing this package imports no torch; running a verb imports what it needs.
"""

from __future__ import annotations

from importlib import import_module

from .progress import listening
from .verb import REQUIRED, Argument, Parameter, Result, Verb, declared

__all__ = ["REQUIRED", "Argument", "Parameter", "Result", "Verb", "listening", "verbs"]

# The files that declare verbs, in the order in which a reader meets them.
_FILES = (
    "demo", "teaching", "checkup", "files", "looking", "reading", "weights", "editing", "explaining", "attributing",
    "collecting", "training", "evaluating", "features", "feature_graphs", "keeping", "zoo", "benchmarking",
)  # fmt: skip


def verbs() -> dict[str, Verb]:
    """Every verb by name, in the order of the help."""
    for file in _FILES:
        import_module(f".{file}", __name__)
    return declared()
