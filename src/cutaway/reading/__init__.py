"""Reading a network by its linear paths: what every unit says in human terms, and who reads what who writes.

Importing this package imports no torch; the functions do.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "strings": "words",
    "Strings": "found",
    "build_index": "build",
    "Index": "index",
    "used": "dynamic",
    "contributed": "dynamic",
    "sites_of": "dynamic",
}
__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    """Load a name on first use (PEP 562); any other is an AttributeError."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_NAMES[name]}", __name__), name)
