"""The project file: names, comments, claims and kept results, with their whole history.

`Project` is loaded when it is first asked for, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cutaway.project.project import Project

__all__ = ["Project"]


def __getattr__(name: str) -> object:
    """Load `Project` on first use (PEP 562); any other name is an AttributeError."""
    if name == "Project":
        from cutaway.project.project import Project

        return Project
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
