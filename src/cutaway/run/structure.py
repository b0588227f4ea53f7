"""Nested arguments and outputs: tensors taken out, references put in, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

ATOMS = frozenset({int, float, str, bool, type(None)})


class Ref:
    """Stands where a tensor stood: the id of its value."""

    __slots__ = ("id",)

    def __init__(self, id: int) -> None:
        self.id = id

    def __repr__(self) -> str:
        return f"%{self.id}"


def atomic(items: Any) -> bool:
    """Whether a sequence holds numbers, words and None alone."""
    return not isinstance(items, slice) and all(type(item) in ATOMS for item in items)


def swap(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """`tree` with `change` applied to every `kind` in its lists, tuples, dicts, slices and dataclasses."""
    if type(tree) in ATOMS:
        return tree
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, tuple):
        items = [swap(item, kind, change) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    if isinstance(tree, list):
        return [swap(item, kind, change) for item in tree]
    if isinstance(tree, slice):
        return slice(*(swap(part, kind, change) for part in (tree.start, tree.stop, tree.step)))
    if isinstance(tree, Mapping):
        swapped = {key: swap(value, kind, change) for key, value in tree.items()}
        return swapped if type(tree) is dict else _like(tree, swapped)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {field.name: swap(getattr(tree, field.name), kind, change) for field in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **fields)
    return tree


def _like(mapping: Mapping[str, Any], items: dict[str, Any]) -> Any:
    try:
        return type(mapping)(**items)
    except TypeError:
        return items


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor of a structure, in a fixed order; other objects are passed over."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors(item)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from tensors(item)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from tensors(getattr(tree, field.name))
