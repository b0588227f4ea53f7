"""The promise that the user's network comes back as it was, whatever happened."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_TABLES = (
    "_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
    "_backward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called", "_non_persistent_buffers_set",
)  # fmt: skip


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore attributes, parameters' flags and random number generators of `model` and its modules at the end.

    Contents of buffers that the run writes into are restored by the recorder, which sees the writes.
    """
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    tables = [{name: module.__dict__[name].copy() for name in _TABLES if name in module.__dict__} for module in modules]
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
        for module, saved, table in zip(modules, attributes, tables, strict=True):
            current = module.__dict__
            if len(current) != len(saved) or any(current.get(name) is not value for name, value in saved.items()):
                current.clear()
                current.update(saved)
            for name, content in table.items():
                held = module.__dict__[name]
                if list(held) != list(content) or any(a is not b for a, b in _pairs(held, content)):
                    held.clear()
                    held.update(content)
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        if numpy_state is not None:
            sys.modules["numpy"].random.set_state(numpy_state)


def _pairs(current: Any, content: Any) -> list[tuple[Any, Any]]:
    if isinstance(content, dict):
        return [(current[key], value) for key, value in content.items()]
    return []


def _numpy_state() -> Any:
    numpy = sys.modules.get("numpy")
    return numpy.random.get_state() if numpy is not None else None
