"""Transforms of torch.func in a recording: one op each.

Inside them torch runs the function on wrapped tensors that are gone afterwards, so their parts cannot be recorded. The
tensors that the function takes from around it become inputs of the op like its arguments, so that a replay sees edits
of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import CellType, FunctionType
from typing import Any

from torch import Tensor
from torch._functorch import apis, eager_transforms

# What every transform ends in, and how it is called in a listing. The function is the first argument of each.
ENTRIES = (
    (apis, "vmap_impl", "vmap"),
    (eager_transforms, "grad_impl", "grad"),
    (eager_transforms, "grad_and_value_impl", "grad_and_value"),
    (eager_transforms, "_jvp_with_argnums", "jvp"),
)
PULLBACK = (eager_transforms, "_vjp_with_argnums")
_DEEPEST = 4  # functions within functions whose surroundings are looked at


def as_one_call(original: Callable[..., Any], function: Any) -> tuple[Callable[..., Any], list[Tensor]]:
    """(call, held): `call(held, *rest)` is `original(function, *rest)` with `held` in place of what the function took
    from around it."""
    held: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    _rebuilt(function, collect)

    def call(given: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        queue: Iterator[Tensor] = iter(given)
        return original(_rebuilt(function, lambda tensor: next(queue)), *args, **kwargs)

    return call, held


def _rebuilt(item: Any, change: Callable[[Tensor], Tensor], depth: int = 0) -> Any:
    """A function over other tensors than those it closes over."""
    if isinstance(item, Tensor):
        return change(item)
    if depth > _DEEPEST:
        return item
    if type(item) in (tuple, list):
        return type(item)(_rebuilt(part, change, depth + 1) for part in item)
    if isinstance(item, partial):
        args = [_rebuilt(arg, change, depth + 1) for arg in item.args]
        words = {name: _rebuilt(arg, change, depth + 1) for name, arg in item.keywords.items()}
        return partial(_rebuilt(item.func, change, depth + 1), *args, **words)
    if not isinstance(item, FunctionType) or not item.__closure__:
        return item
    cells = tuple(CellType(_rebuilt(cell.cell_contents, change, depth + 1)) for cell in item.__closure__)
    made = FunctionType(item.__code__, item.__globals__, item.__name__, item.__defaults__, cells)
    made.__kwdefaults__ = item.__kwdefaults__
    return made
