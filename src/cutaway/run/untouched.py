"""The promise that the user's network comes back as it was, whatever happened."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_CONTAINERS = (dict, list, set, deque)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore attributes, parameters' flags and random number generators of `model` and its modules at the end.

    Contents of buffers that the run writes into are restored by the recorder, which sees the writes. Lists, dicts and
    sets in attributes get their contents back, also those inside one another.
    """
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    tables = [_tables(module) for module in modules]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), _numpy_state()
    try:
        for parameter, _, _ in parameters:
            if parameter.is_leaf:
                parameter.requires_grad = False
        yield
    finally:
        for parameter, flag, grad in parameters:
            if parameter.is_leaf:
                parameter.requires_grad = flag
            parameter.grad = grad
        for module, saved, held in zip(modules, attributes, tables, strict=True):
            current = module.__dict__
            if len(current) != len(saved) or any(current.get(name) is not value for name, value in saved.items()):
                current.clear()
                current.update(saved)
            for table, content in held:
                if not _unchanged(table, content):
                    table.clear()
                    (table.extend if isinstance(table, (list, deque)) else table.update)(content)
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        if numpy_state is not None:
            sys.modules["numpy"].random.set_state(numpy_state)


def _tables(module: nn.Module) -> list[tuple[Any, tuple[Any, ...]]]:
    """A module's containers (parameters, hooks, lists of its author's, …) and what is in each."""
    found: list[tuple[Any, tuple[Any, ...]]] = []
    waiting = [item for item in module.__dict__.values() if isinstance(item, _CONTAINERS)]
    seen: set[int] = set()
    while waiting:
        table = waiting.pop()
        if not table:
            found.append((table, ()))
        elif id(table) not in seen:
            seen.add(id(table))
            found.append((table, tuple(table.items() if isinstance(table, dict) else table)))
            inner = table.values() if isinstance(table, dict) else table
            waiting += [item for item in inner if isinstance(item, _CONTAINERS)]
    return found


def _unchanged(table: Any, content: tuple[Any, ...]) -> bool:
    if not table and not content:
        return True
    if len(table) != len(content):
        return False
    if isinstance(table, set):
        return all(item in table for item in content)
    if not isinstance(table, dict):
        return all(a is b for a, b in zip(table, content, strict=True))
    return all(a is c and b is d for (a, b), (c, d) in zip(table.items(), content, strict=True))


class Seal:
    """Shows whether somebody wrote into a tensor: by its version, its memory, and a few of its numbers.

    Writes through `.data` leave no trace in the version; the sample notices them unless they miss it.
    """

    __slots__ = ("_place", "_sample", "_seen", "_version", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        plain = tensor.detach()
        self.tensor = tensor
        self._sample = None
        if plain.numel() and plain.layout == torch.strided and plain.is_contiguous() and not plain.is_complex():
            bits = _BITS[plain.dtype.itemsize]  # compared as integers, for NaN is not equal to itself
            self._sample = plain.view(-1)[:: max(plain.numel() // 8, 1)].view(bits)
        self._place, self._version, self._seen = self._now()

    def _now(self) -> tuple[int, int, Any]:
        version = 0 if self.tensor.is_inference() else self.tensor._version
        place = self.tensor.data_ptr() if self.tensor.layout == torch.strided else 0
        return place, version, None if self._sample is None else self._sample.tolist()

    def renewed(self) -> Seal:
        """A seal on the same contents: after a run that wrote into them and put them back, the version has moved on."""
        place, version, seen = self._now()
        same = (place, seen) == (self._place, self._seen) and version != self._version
        return Seal(self.tensor) if same else self

    def broken(self) -> bool:
        """Whether the tensor is no longer what it was."""
        return self._now() != (self._place, self._version, self._seen)


def _numpy_state() -> Any:
    numpy = sys.modules.get("numpy")
    return numpy.random.get_state() if numpy is not None else None
