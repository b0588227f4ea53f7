"""Names and shapes of a checkpoint's tensors, looked up by patterns in which `#` stands for any number."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

Shape = tuple[int, ...]
# What training scripts put around a state dict, and around the names in it.
_OUTER = ("state_dict", "model_state_dict", "model_state", "module", "_orig_mod", "params")


class Shapes:
    """Shapes by name below `prefix`; a pattern that begins with `/` is looked up without the prefix."""

    def __init__(self, shapes: Mapping[str, Shape], prefix: str = "") -> None:
        self.shapes = dict(shapes)
        self.prefix = prefix
        self._first: dict[str, Shape] = {}
        for name, shape in self.shapes.items():
            self._first.setdefault(general(name), shape)

    def below(self, prefix: str) -> Shapes:
        """The same with another prefix."""
        return Shapes(self.shapes, prefix)

    def get(self, pattern: str) -> Shape | None:
        """The shape of the first tensor that fits a pattern, None if there is none."""
        return self._first.get(self._full(pattern))

    def size(self, path: str) -> int | None:
        """`PATTERN:AXIS` is a size, `PATTERN#` at the end of a path how many numbers stand there, `?PATTERN` whether a
        tensor is there (1 or 0)."""
        if path.startswith("?"):
            return int(self.get(path[1:]) is not None)
        if path.endswith("#"):
            return self.count(path)
        pattern, _, axis = path.rpartition(":")
        shape = self.get(pattern)
        return None if shape is None or len(shape) <= int(axis) else shape[int(axis)]

    def count(self, pattern: str) -> int:
        """How many different numbers stand where the pattern's last `#` is."""
        parts = re.escape(self._full(pattern)).split(r"\#")
        found = re.compile(r"\d+".join(parts[:-1]) + r"(\d+)(?:\.|$)")
        return len({match[1] for name in self.shapes if (match := found.match(name))})

    def prefixes(self, pattern: str) -> list[str]:
        """The prefixes below which a tensor fits a pattern."""
        return list(
            dict.fromkeys(
                name[: -len(pattern)] for name in self._first if name == pattern or name.endswith(f".{pattern}")
            )
        )

    def _full(self, pattern: str) -> str:
        return pattern[1:] if pattern.startswith("/") else self.prefix + pattern


def general(name: str) -> str:
    """A name with `#` for every number between dots."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "#", name)


def unwrapped(names: Iterable[str]) -> str:
    """The prefix that all names share and that only says how they were saved (`state_dict.`, `module.`)."""
    names, prefix = list(names), ""
    while names:
        first = names[0][len(prefix) :].partition(".")[0]
        if first not in _OUTER or not all(name.startswith(f"{prefix}{first}.") for name in names):
            return prefix
        prefix += f"{first}."
    return prefix


Value = str | int | bool | Callable[[Shapes], object]


def evaluated(value: Value, shapes: Shapes) -> object:
    """A cell of a table: a path is read, a function asked, anything else kept; None where nothing is there."""
    if isinstance(value, str):
        found = shapes.size(value)
        return bool(found) if value.startswith("?") else found
    return value(shapes) if callable(value) else value
