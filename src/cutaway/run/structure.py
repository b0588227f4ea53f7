"""Nested arguments and outputs: tensors taken out, references put in, and back."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

ATOMS = frozenset({int, float, str, bool, type(None)})
_MOST_OBJECTS = 200_000
_SHARED = (nn.Module, type, FunctionType, MethodType, BuiltinFunctionType, ModuleType)


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
    if held := _held(tree):
        twin = copy.copy(tree)
        vars(twin).update({name: change(value) if isinstance(value, kind) else value for name, value in held.items()})
        return twin
    return tree


def _held(tree: Any) -> dict[str, Any]:
    """The tensors, or what stands for them, in the attributes of an object such as a distribution."""
    if isinstance(tree, _SHARED) or not hasattr(tree, "__dict__"):
        return {}
    return {name: value for name, value in vars(tree).items() if isinstance(value, (Tensor, Ref))}


def _like(mapping: Mapping[str, Any], items: dict[str, Any]) -> Any:
    try:
        return type(mapping)(**items)
    except TypeError:
        return items


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor of a structure, in a fixed order; of other objects, those in their attributes."""
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
    else:
        yield from (value for value in _held(tree).values() if isinstance(value, Tensor))


def fresh(tree: Any, change: Callable[[Tensor], Tensor] = Tensor.clone) -> Any:
    """A copy of inputs, down to the tensors in objects such as caches, so that a run may write into all of it.

    `change` gives what stands for a tensor in the copy. What cannot be copied is used as it is.
    """
    kept = {id(item): change(item) if isinstance(item, Tensor) else item for item in _ends(tree)}
    try:
        return copy.deepcopy(tree, kept)
    except (TypeError, RuntimeError, NotImplementedError):
        return swap(tree, Tensor, change)


def within(tree: Any) -> list[Tensor]:
    """Every tensor of a structure, also those inside objects such as caches, each once, in a fixed order."""
    return [item for item in _ends(tree) if isinstance(item, Tensor)]


def _ends(tree: Any) -> list[Any]:
    """What a copy does not look into, tensors first of all, each once, in the order in which they are met."""
    if isinstance(tree, Tensor):
        return [tree]
    found, held, seen = [], [], set[int]()  # held so that their ids stay their own
    waiting = [tree]
    while waiting and len(seen) < _MOST_OBJECTS:
        item = waiting.pop()
        if type(item) in ATOMS or id(item) in seen:
            continue
        seen.add(id(item))
        held.append(item)
        if isinstance(item, (Tensor, *_SHARED)):
            found.append(item)
            continue
        inner: list[Any] = []
        if isinstance(item, Mapping):
            inner += item.values()
        elif dataclasses.is_dataclass(item) and not hasattr(item, '__dict__'):
            inner += (getattr(item, field.name) for field in dataclasses.fields(item))
        inner += item if isinstance(item, (list, tuple, set, deque)) else getattr(item, "__dict__", {}).values()
        waiting += reversed(inner)
    return found
