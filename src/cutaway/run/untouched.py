"""The promise that the user's network comes back as it was, whatever happened."""

from __future__ import annotations

import random
import sys
import warnings
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from types import ModuleType
from typing import Any

import torch
from torch import nn

_CONTAINERS = frozenset({dict, list, set, deque})
_OPAQUE = (nn.Module, torch.Tensor, type, ModuleType, str, int, float, tuple, frozenset, type(None))
_MOST_OBJECTS = 20_000
_MOST_BYTES = 1 << 16  # of a tensor whose bytes are summed up without being asked
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Snapshot:
    """What the modules of a model hold: attributes by identity, and the contents of their containers, nested ones too.

    Plain objects among them (a configuration, say) are looked into, so that a change is noticed; they are shared with
    the rest of the program, so `restore` leaves them alone.
    """

    __slots__ = ("_attributes", "_empty", "_objects", "_tables")

    def __init__(self, model: nn.Module) -> None:
        self._attributes: list[tuple[dict[str, Any], tuple[str, ...], tuple[Any, ...]]] = []
        self._empty: list[Any] = []
        self._tables: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = []
        self._objects: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = []
        seen: set[int] = set()
        waiting: list[tuple[Any, bool]] = []
        for module in model.modules():
            held = module.__dict__
            self._attributes.append((held, tuple(held), tuple(held.values())))
            waiting += [(item, True) for item in held.values() if item is not None]
        while waiting and len(seen) < _MOST_OBJECTS:
            item, ours = waiting.pop()
            kind = type(item)
            if kind in _CONTAINERS or isinstance(item, (dict, list, set, deque)):
                if not item and ours:
                    self._empty.append(item)
                elif id(item) not in seen:
                    seen.add(id(item))
                    values = tuple(item.values() if isinstance(item, dict) else item)
                    keys = tuple(item) if isinstance(item, dict) else ()
                    (self._tables if ours else self._objects).append((item, keys, values))
                    waiting += [(inner, ours) for inner in values if not isinstance(inner, _OPAQUE)]
            elif not isinstance(item, _OPAQUE) and id(item) not in seen and (fields := getattr(item, "__dict__", None)):
                seen.add(id(item))
                waiting.append((fields, False))

    def same(self) -> bool:
        """Whether everything is as it was."""
        return (
            not any(self._empty)
            and all(_same(*entry) for entry in self._attributes)
            and all(_same(*entry) for entry in self._tables)
            and all(_same(*entry) for entry in self._objects)
        )

    def restore(self) -> None:
        """Put attributes and the contents of containers back."""
        for held, keys, values in self._attributes:
            if not _same(held, keys, values):
                held.clear()
                held.update(zip(keys, values, strict=True))
        for table in self._empty:
            if table:
                table.clear()
        for table, keys, values in self._tables:
            if not _same(table, keys, values):
                table.clear()
                if keys:
                    table.update(zip(keys, values, strict=True))
                else:
                    (table.update if isinstance(table, set) else table.extend)(values)


def _same(table: Any, keys: tuple[Any, ...], values: tuple[Any, ...]) -> bool:
    if len(table) != len(values):
        return False
    if isinstance(table, dict):
        return all(map(is_, table.values(), values)) and tuple(table) == keys
    return all(item in table for item in values) if isinstance(table, set) else all(map(is_, table, values))


@contextmanager
def untouched(model: nn.Module, snapshot: Snapshot | None = None) -> Iterator[list[str]]:
    """Restore attributes, parameters' flags and random number generators of `model` and its modules at the end.

    Contents of buffers that the run writes into are restored by the recorder, which sees the writes. Lists, dicts and
    sets in attributes get their contents back, also those inside one another. `snapshot` spares taking one. What is
    yielded names, at the end, the generators outside torch that were drawn from.
    """
    drawn: list[str] = []
    snapshot = snapshot or Snapshot(model)
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), _numpy_state()
    filters = list(warnings.filters)
    try:
        for parameter, flag, _ in parameters:
            if flag and parameter.is_leaf:
                parameter.requires_grad = False
        yield drawn
    finally:
        for parameter, flag, grad in parameters:
            if parameter.requires_grad != flag and parameter.is_leaf:
                parameter.requires_grad = flag
            if parameter.grad is not grad:
                parameter.grad = grad
        snapshot.restore()
        torch.set_rng_state(torch_state)
        if random.getstate() != python_state:
            drawn.append("random")
            random.setstate(python_state)
        if numpy_state is not None:
            if _plain(numpy_state) != _plain(_numpy_state()):
                drawn.append("numpy")
            sys.modules["numpy"].random.set_state(numpy_state)
        if warnings.filters != filters:  # what is imported at first use may add some
            warnings.filters[:] = filters  # type: ignore[index]


class Seal:
    """Shows whether somebody wrote into a tensor: by its version, its memory, and a few of its numbers.

    Writes through `.data` leave no trace in the version; the sample notices them unless they miss it. A write of what
    was there already (a state dict loaded twice) breaks no seal if the tensor has at most `most` bytes, which are then
    summed up.
    """

    __slots__ = ("_place", "_sample", "_seen", "_sum", "_version", "most", "tensor")

    def __init__(self, tensor: torch.Tensor, most: int = _MOST_BYTES) -> None:
        plain = tensor.detach()
        self.tensor = tensor
        self.most = most
        self._sample = None
        if plain.numel() and plain.layout == torch.strided and plain.is_contiguous() and not plain.is_complex():
            bits = _BITS[plain.dtype.itemsize]  # compared as integers, for NaN is not equal to itself
            self._sample = plain.view(-1)[:: max(plain.numel() // 8, 1)].view(bits)
        self._place, self._version, self._seen = self._now()
        self._sum = self._summed()

    def _summed(self) -> int | None:
        """A checksum of all bytes, where they are few and at hand."""
        plain = self.tensor.detach()
        if self._sample is None or plain.device.type != "cpu" or type(plain) is not torch.Tensor:
            return None
        return zlib.crc32(plain.view(-1).view(torch.uint8).numpy().data) if plain.nbytes <= self.most else None

    def _now(self) -> tuple[int, int, Any]:
        version = 0 if self.tensor.is_inference() else self.tensor._version
        place = self.tensor.data_ptr() if self.tensor.layout == torch.strided else 0
        return place, version, None if self._sample is None else self._sample.tolist()

    def renewed(self) -> Seal:
        """A seal on the same contents: after a run that wrote into them and put them back, the version has moved on."""
        place, version, seen = self._now()
        same = (place, seen) == (self._place, self._seen) and version != self._version
        return Seal(self.tensor, self.most) if same else self

    def broken(self) -> bool:
        """Whether the tensor is no longer what it was."""
        place, version, seen = self._now()
        if (place, seen) != (self._place, self._seen):
            return True
        if version != self._version and (self._sum is None or self._sum != self._summed()):
            return True
        self._version = version
        return False


def _numpy_state() -> Any:
    numpy = sys.modules.get("numpy")
    return numpy.random.get_state() if numpy is not None else None


def _plain(state: Any) -> tuple[Any, ...]:
    """A generator's state of numpy as something that compares as a whole."""
    return (state[0], state[1].tobytes(), *state[2:])
