"""Which of a call's arguments it may write into."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .calls import HIDDEN_WRITES, Kind
from .structure import tensors
from .tape import Writes


def targets(kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Writes:
    """The tensors a call may write into, as (position or keyword, tensor)."""
    places: list[tuple[int | str, Any]]
    if "out" in kwargs:
        places = [("out", tensor) for tensor in tensors(kwargs["out"])]
        return places[:1]
    if kind.hidden:
        hidden, (asked_at, asked_as) = HIDDEN_WRITES[kind.name]
        if not kwargs.get(asked_as, args[asked_at] if len(args) > asked_at else False):
            return []
        places = [(at, args[at]) if len(args) > at else (word, kwargs.get(word)) for at, word in hidden]
        return [(place, item) for place, item in places if isinstance(item, Tensor)]
    if kind.inplace >= 0:
        asked = kwargs.get("inplace", args[kind.inplace] if len(args) > kind.inplace else False)
        if not asked:
            return []
        first = args[0] if args else kwargs.get("input")
        return [(0 if args else "input", first)] if isinstance(first, Tensor) else []
    if not kind.writes:
        return []
    if not kind.foreign:  # torch's own functions write into their first argument
        return [(0, args[0])] if args and isinstance(args[0], Tensor) else []
    places = [*enumerate(args), *kwargs.items()]
    return [(place, item) for place, item in places if isinstance(item, Tensor)]
