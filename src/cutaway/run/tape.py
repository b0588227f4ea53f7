"""The tape: torch calls as they happen, with enough kept of each to make it again.

`Tape` is a graph plus, for each op, the call that made it. `Logger` writes one: it gives every tensor a value id, turns
in-place writes into new values, and keeps the tensors it is asked to keep. It is fed by the recorder (record.py), which
sees torch functions, and by the opener (inside.py), which sees ATen ops.

In-place writes. A write gives the written tensor a new value. Other live tensors on the same storage changed too; each
gets a new value as well, made by a synthetic `alias` op (a strided view of the written tensor, or a strided scatter into
the larger one). Tensors that were kept are cloned before the write reaches them. A replay calls the op's counterpart that
returns its result, or writes into a clone where torch has none.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from ..graph import Graph, ModuleCall, Op, Value
from .calls import Kind, without_write
from .structure import Ref, swap, tensors

_TORCH = os.path.dirname(torch.__file__)
_HERE = os.path.dirname(__file__)


@dataclass(slots=True)
class Call:
    """How to make an op again. `slots` are the (position, value) of tensor arguments when they are all plain
    positional ones, else None; `written` are (position or keyword, new value); `results` one value or -1 a tensor."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slots: list[tuple[int, int]] | None
    results: tuple[int, ...]
    written: tuple[tuple[int | str, int], ...] = ()
    grad: bool = True
    autocast: torch.dtype | None = None
    rng: Tensor | None = None
    answer: Any = None


@dataclass
class Tape:
    """A graph, its calls, and the tensors of its leaves and kept values."""

    graph: Graph
    calls: list[Call]
    leaves: dict[int, Tensor]
    kept: dict[int, Tensor]
    problems: list[str] = field(default_factory=list)


class Logger:
    """Writes a tape, one op at a time."""

    def __init__(self, keep: Callable[[str], bool] | bool) -> None:
        self.tape = Tape(Graph(modules=[ModuleCall("", 0, "", -1, 0)]), [], {}, {})
        self.keep = keep
        self.named: dict[int, tuple[str, str]] = {}
        self.stack: list[int] = [0]
        self.restore: list[tuple[Tensor, Tensor]] = []
        self._ids: dict[int, tuple[Callable[[], Tensor | None], int]] = {}
        self._storages: dict[int, list[tuple[Callable[[], Tensor | None], int]]] = {}
        self._outer: dict[CodeType, bool] = {}

    # ---- values

    def leaf(self, tensor: Tensor, kind: str, name: str) -> int:
        """Give a tensor from outside a value."""
        graph = self.tape.graph
        value = len(graph.values)
        graph.values.append(Value(value, kind, name, -1, 0, tuple(tensor.shape), str(tensor.dtype)[6:]))
        self.tape.leaves[value] = tensor
        self._know(tensor, value, lambda: tensor)
        return value

    def value(self, tensor: Tensor) -> int:
        """The value that a tensor holds now; a tensor never seen before becomes a leaf."""
        found = self._ids.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        kind, name = self.named.get(id(tensor), ("const", str(len(self.tape.graph.values))))
        return self.leaf(tensor, kind, name)

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor already has a value."""
        found = self._ids.get(id(tensor))
        return found is not None and found[0]() is tensor

    def _know(self, tensor: Tensor, value: int, ref: Callable[[], Tensor | None]) -> None:
        self._ids[id(tensor)] = (ref, value)
        key = _storage(tensor)
        group = self._storages.get(key)
        if group is None:
            self._storages[key] = [(ref, value)]
        else:
            if len(group) > 32:
                group[:] = [entry for entry in group if entry[0]() is not None]
            group.append((ref, value))

    def _made(self, tensor: Tensor, op: int, port: int, address: str) -> int:
        value = len(self.tape.graph.values)
        shape = tuple(tensor.shape)
        self.tape.graph.values.append(Value(value, "op", "", op, port, shape, str(tensor.dtype)[6:]))
        keep = self.keep if isinstance(self.keep, bool) else self.keep(address) or self.keep(f"{address}:{port}")
        if keep:
            self.tape.kept[value] = tensor
        self._know(tensor, value, weakref.ref(tensor))
        return value

    # ---- ops

    def address_next(self, name: str) -> str:
        """The address that the next op of this name will have."""
        call = self.tape.graph.modules[self.stack[-1]]
        return f"{call.name}/{name}.{call.counts.get(name, 0)}"

    def prepare_write(self, targets: list[Tensor]) -> None:
        """Before a write: keep what the write would destroy."""
        for tensor in targets:
            value = self.value(tensor)
            for ref, alias in [(lambda held=tensor: held, value), *self._storages.get(_storage(tensor), ())]:
                live = ref()
                if live is None:
                    continue
                if alias in self.tape.kept and self.tape.kept[alias] is live:
                    self.tape.kept[alias] = live.detach().clone()
                if alias in self.tape.leaves and self.tape.leaves[alias] is live:
                    self.tape.leaves[alias] = saved = live.detach().clone()
                    self.restore.append((live, saved))

    def log(
        self,
        kind: Kind,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        packed: tuple[tuple[Any, ...], dict[str, Any], list[int], list[tuple[int, int]] | None],
        out: Any,
        writes: list[tuple[int | str, Tensor]],
        rng: Tensor | None = None,
    ) -> int:
        """Add one op that has just run; `packed` are its arguments from before it ran. Returns its index, or -1 for an op
        that handed its input back: that is the same value, and no op."""
        graph, index = self.tape.graph, len(self.tape.graph.ops)
        call = graph.modules[self.stack[-1]]
        ordinal = call.counts.get(kind.name, 0)
        call.counts[kind.name] = ordinal + 1
        address = "" if isinstance(self.keep, bool) else f"{call.name}/{kind.name}.{ordinal}"
        packed_args, packed_kwargs, inputs, slots = packed
        outputs: list[int] = []
        written: list[tuple[int | str, int]] = []
        for position, tensor in writes:
            value = self._made(tensor, index, len(outputs), address)
            outputs.append(value)
            written.append((position, value))
        results: list[int] = []
        for tensor in (out,) if isinstance(out, Tensor) else tensors(out):
            if any(tensor is other for _, other in writes):
                results.append(-1)
                continue
            if self.knows(tensor) and self.value(tensor) in inputs:
                results.append(-1)  # handed back as it came in: still the same value
                continue
            value = self._made(tensor, index, len(outputs), address)
            outputs.append(value)
            results.append(value)
        if not outputs and not kind.guard:
            return -1
        answer = out if kind.guard else None
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        grad = torch.is_grad_enabled()
        if len(written) == 1 and written[0][0] == 0 and all(value < 0 for value in results):
            if (plain := without_write(kind, func, packed_args)) is not None:
                func, packed_args = plain
                packed_kwargs = {name: item for name, item in packed_kwargs.items() if name != "inplace"}
                results, written = [written[0][1]], []
        entry = Call(func, packed_args, packed_kwargs, slots, tuple(results), tuple(written), grad, autocast, rng, answer)
        op = Op(index, kind.name, ordinal, self.stack[-1], tuple(dict.fromkeys(inputs)), tuple(outputs), self._source())
        graph.ops.append(op)
        self.tape.calls.append(entry)
        for _, tensor in writes:
            self._sync_aliases(tensor)
        return index

    def pack(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], list[int], list[tuple[int, int]] | None]:
        """Arguments with references for tensors, the values referred to, and the plain slots if that is all."""
        inputs: list[int] = []
        slots: list[tuple[int, int]] | None = []
        packed: list[Any] = []

        def take(tensor: Tensor) -> Ref:
            value = self.value(tensor)
            inputs.append(value)
            return Ref(value)

        for position, item in enumerate(args):
            if isinstance(item, Tensor):
                ref = take(item)
                packed.append(ref)
                if slots is not None:
                    slots.append((position, ref.id))
            elif isinstance(item, (list, tuple, dict, slice)):
                before = len(inputs)
                packed.append(swap(item, Tensor, take))
                if len(inputs) > before:
                    slots = None
            else:
                packed.append(item)
        before = len(inputs)
        packed_kwargs = swap(kwargs, Tensor, take) if kwargs else kwargs
        if len(inputs) > before:
            slots = None
        return tuple(packed), packed_kwargs, inputs, slots

    def _sync_aliases(self, written: Tensor) -> None:
        """After a write: new values for the other live tensors on its storage."""
        for ref, value in list(self._storages.get(_storage(written), ())):
            alias = ref()
            if alias is None or alias is written or self._ids.get(id(alias), (None, -1))[1] != value:
                continue
            if _spans(written, alias):
                func, sources = _view_of, [written]
                extra = (tuple(alias.shape), tuple(alias.stride()), alias.storage_offset() - written.storage_offset())
            elif _spans(alias, written):
                func, sources = torch.as_strided_scatter, [alias, written]
                extra = (
                    tuple(written.shape),
                    tuple(written.stride()),
                    written.storage_offset() - alias.storage_offset(),
                )
            else:
                self.tape.problems.append(
                    f"a write through a view at {self.tape.graph.site(self.value(written))} reaches another view that "
                    "a replay cannot follow"
                )
                continue
            packed = self.pack((*sources, *extra), {})
            graph, index = self.tape.graph, len(self.tape.graph.ops)
            call = graph.modules[self.stack[-1]]
            ordinal = call.counts.get("alias", 0)
            call.counts["alias"] = ordinal + 1
            made = self._made(alias, index, 0, f"{call.name}/alias.{ordinal}")
            graph.ops.append(
                Op(index, "alias", ordinal, self.stack[-1], tuple(packed[2]), (made,), graph.ops[-1].source)
            )
            self.tape.calls.append(Call(func, packed[0], {}, packed[3], (made,), (), torch.is_grad_enabled()))

    def _source(self) -> tuple[str, int, str] | None:
        """The nearest frame outside torch and outside this room."""
        frame = sys._getframe(3)
        while frame is not None:
            code = frame.f_code
            outer = self._outer.get(code)
            if outer is None:
                file = code.co_filename
                outer = self._outer[code] = not (file.startswith((_TORCH, _HERE)) or "/contextlib" in file)
            if outer:
                return (code.co_filename, frame.f_lineno, code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        return None


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse, functorch and other tensors without a storage of their own
        return id(tensor)


def _spans(outer: Tensor, inner: Tensor) -> bool:
    """Whether `outer` is dense and holds every element of `inner`."""
    if not outer.is_contiguous() or outer.dtype != inner.dtype:
        return False
    first = inner.storage_offset() - outer.storage_offset()
    last = first + sum((size - 1) * step for size, step in zip(inner.shape, inner.stride(), strict=True))
    return first >= 0 and last < outer.numel()


def _view_of(base: Tensor, shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> Tensor:
    return base.contiguous().as_strided(shape, stride, offset)
