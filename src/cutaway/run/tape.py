"""The tape: torch calls as they happen, with enough kept of each to make it again.

`Tape` is a graph plus, for each op, the call that made it. `Logger` writes one: it gives every tensor a value id, turns
in-place writes into new values, and keeps the tensors it is asked to keep. It is fed by the recorder (record.py), which
sees torch functions, and by the opener (inside.py), which sees ATen ops.

In-place writes. A write gives the written tensor a new value. Other live tensors on the same storage changed too; each
gets a new value as well, made by a synthetic `alias` op (a strided view of the written tensor, or a strided scatter
into the larger one). Tensors that were kept are cloned before the write reaches them. A replay calls the op's
counterpart that returns its result, or writes into a clone where torch has none.
"""

from __future__ import annotations

import copy
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from ..graph import Graph, ModuleCall, Op, Value
from .calls import Kind, without_write
from .keep import Checkpoints, Enough, Kept
from .memory import overlap, scattered, spans, storage_of, viewed
from .structure import ATOMS, Ref, atomic, fresh, swap, tensors, within
from .untouched import Seal

Writes = list[tuple[int | str, Tensor]]
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
    """A graph, its calls, and the tensors of its leaves and kept values; `seals` show later whether a buffer was
    written. `pure`: nothing was written in place, drawn, or run out of sight. `sparse`: kept values are checkpoints.
    `assumed`: the graph is an earlier run's, and nobody has looked yet whether it gives this run's output. `inner` are
    the values of all tensors in the output where objects such as caches hold some; -1 for what the run did not make.
    `after`: the values that stand for others behind dictionaries that were put in."""

    graph: Graph
    calls: list[Call]
    leaves: dict[int, Tensor]
    kept: dict[int, Tensor]
    problems: list[str] = field(default_factory=list)
    seals: dict[int, Seal] = field(default_factory=dict)
    pure: bool = True
    sparse: bool = False
    assumed: bool = False
    generators: list[torch.Generator] = field(default_factory=list)
    inner: tuple[int, ...] = ()
    after: dict[int, int] = field(default_factory=dict)


class Logger:
    """Writes a tape, one op at a time."""

    def __init__(self, keep: Kept | Checkpoints | bool) -> None:
        self.tape = Tape(Graph(modules=[ModuleCall("", 0, "", -1, 0)]), [], {}, {})
        self.checkpoints = keep if isinstance(keep, Checkpoints) else None
        self.keep: Kept | bool = False if isinstance(keep, Checkpoints) else keep
        self.tape.sparse = self.checkpoints is not None
        self.named: dict[int, tuple[str, str]] = {}
        self.failed: tuple[BaseException, str] | None = None
        self.held: Callable[[Tensor], bool] | None = None
        self.stack: list[int] = [0]
        self._dtypes: dict[torch.dtype, str] = {}
        self.restore: list[tuple[Tensor, Tensor]] = []
        self.own: frozenset[int] = frozenset()
        self.states: list[Tensor] = []
        self._ids: dict[int, tuple[Callable[[], Tensor | None], int]] = {}
        # Who lies on which storage: asked for by writes alone, so kept from the first write on.
        self._storages: dict[int, list[tuple[Callable[[], Tensor | None], int]]] | None = None
        # By id: hashing a code object hashes its bytecode. The code is held so that its id stays its own.
        self._outer: dict[int, tuple[CodeType, bool]] = {}

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
        if kind == "const" and self.held is not None and self._is_orphan(tensor):
            where = self.tape.graph.modules[self.stack[-1]].name
            self.tape.problems.append(
                f"a tensor of shape {tuple(tensor.shape)} in '{where}' was made by no recorded call; "
                "a replay takes it as fixed"
            )
        return self.leaf(tensor, kind, name)

    def _is_orphan(self, tensor: Tensor) -> bool:
        """Whether a tensor never seen before looks as if it had been made from the inputs during the run."""
        sizes = {self.tape.graph.values[value].shape[:1] for value in self.tape.graph.inputs}
        if not tensor.is_floating_point() or tensor.shape[:1] not in sizes or tensor.ndim < 2:
            return False
        return self.held is not None and not self.held(tensor)

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor already has a value."""
        found = self._ids.get(id(tensor))
        return found is not None and found[0]() is tensor

    def _know(self, tensor: Tensor, value: int, ref: Callable[[], Tensor | None]) -> None:
        self._ids[id(tensor)] = (ref, value)
        if self._storages is not None:
            self._file(tensor, value, ref, self._storages)

    def _file(
        self,
        tensor: Tensor,
        value: int,
        ref: Callable[[], Tensor | None],
        table: dict[int, list[tuple[Callable[[], Tensor | None], int]]],
    ) -> None:
        group = table.setdefault(storage_of(tensor), [])
        if len(group) > 32:
            group[:] = [entry for entry in group if entry[0]() is not None]
        group.append((ref, value))

    def _sharing(self, tensor: Tensor) -> list[tuple[Callable[[], Tensor | None], int]]:
        """The tensors on a tensor's storage, as (weak reference, value)."""
        if self._storages is None:
            self._storages = {}
            for ref, value in list(self._ids.values()):
                live = ref()
                if live is not None:
                    self._file(live, value, ref, self._storages)
        return list(self._storages.get(storage_of(tensor), ()))

    def _made(self, tensor: Tensor, op: int, port: int, address: str) -> int:
        value = len(self.tape.graph.values)
        shape = tuple(tensor.shape)
        self.tape.graph.values.append(Value(value, "op", "", op, port, shape, self._dtype(tensor.dtype)))
        if self.keep is True or (address and self.keep and self._wanted(self.keep, address, port)):
            self.tape.kept[value] = tensor
        self._know(tensor, value, weakref.ref(tensor))
        return value

    @staticmethod
    def _wanted(keep: Kept, address: str, port: int) -> bool:
        return keep(address) or keep(f"{address}:{port}")

    def _dtype(self, dtype: torch.dtype) -> str:
        name = self._dtypes.get(dtype)
        if name is None:
            name = self._dtypes[dtype] = str(dtype)[6:]
        return name

    # ---- ops

    def address_next(self, name: str) -> str:
        """The address that the next op of this name will have."""
        call = self.tape.graph.modules[self.stack[-1]]
        return f"{call.name}/{name}.{call.counts.get(name, 0)}"

    def outputs(self, out: Any, writes: Writes, inputs: list[int]) -> list[Tensor]:
        """The tensors that become an op's outputs: those written, then those returned that did not come in."""
        found = [tensor for _, tensor in writes]
        for tensor in tensors(out):
            if not any(tensor is other for other in found) and not (
                self.knows(tensor) and self.value(tensor) in inputs
            ):
                found.append(tensor)
        return found

    def settled(self, out: Any, given: Any, copied: Any) -> Any:
        """End of the run: the output's values noted, and copied where undoing the run's writes would change them.

        `copied` is what the run was given, a copy of the caller's `given`; what was written into it stays written, for
        the output may hold it, a cache for example.
        """
        graph = self.tape.graph
        written = {storage_of(live) for live, _ in self.restore}
        if written:
            shared = {storage_of(tensor) for tensor in within(given)}
            self.own = frozenset({storage_of(tensor) for tensor in within(copied)} - shared)
        copies: dict[int, Tensor] = {}

        def apart(tensor: Tensor, written: set[int] = written) -> Tensor:
            if storage_of(tensor) not in written:
                return tensor
            # A parameter is a leaf again by now, and no gradient may reach it from what was kept.
            return copies.setdefault(id(tensor), (tensor.detach() if tensor.is_leaf else tensor).clone())

        graph.outputs = [self.value(tensor) for tensor in tensors(out)]
        held = within(out)
        inner = [self.value(tensor) if self.knows(tensor) else -1 for tensor in held]
        self.tape.inner = inner_values(graph, inner)
        for value, tensor in (*zip(graph.outputs, tensors(out), strict=True), *zip(inner, held, strict=True)):
            if value >= 0 and value not in self.tape.leaves:
                self.tape.kept.setdefault(value, tensor)
        if written:
            self.tape.kept = {value: apart(tensor) for value, tensor in self.tape.kept.items()}
        if undone := written - self.own:
            copies.clear()
            deep = any(storage_of(tensor) in undone for tensor in held)
            out = fresh(out, lambda tensor: apart(tensor, undone)) if deep else out
        return out

    def undo_writes(self) -> None:
        """Put back the contents of everything from outside that the run wrote into.

        As a write that autograd sees, so that a backward pass through what the run made of it fails instead of using
        numbers that are no longer there.
        """
        with torch.no_grad():
            for live, saved in reversed(self.restore):
                if storage_of(live) not in self.own:
                    live.copy_(saved)
        for source, state in zip(self.tape.generators, self.states, strict=True):
            source.set_state(state)

    def drew(self, source: torch.Generator, state: Tensor) -> None:
        """Note a generator of the network's own and the state it had before the run drew from it."""
        if not any(source is known for known in self.tape.generators):
            self.tape.generators.append(source)
            self.states.append(state)

    def prepare_write(self, targets: list[Tensor]) -> None:
        """Before a write: keep what the write would destroy."""
        for tensor in targets:
            value = self.value(tensor)
            for ref, alias in [(_holding(tensor), value), *self._sharing(tensor)]:
                live = ref()
                if live is None:
                    continue
                if alias in self.tape.kept and self.tape.kept[alias] is live:
                    self.tape.kept[alias] = live.detach().clone()
                    if self.checkpoints is not None:
                        self.checkpoints.moved(alias, self.tape.kept[alias])
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
        writes: Writes,
        rng: Tensor | None = None,
    ) -> int:
        """Add one op that has just run; `packed` are its arguments from before it ran.

        Returns its index, or -1 for an op that handed its input back: that is the same value, and no op.
        """
        graph, index = self.tape.graph, len(self.tape.graph.ops)
        call = graph.modules[self.stack[-1]]
        ordinal = call.counts.get(kind.name, 0)
        call.counts[kind.name] = ordinal + 1
        asked = not isinstance(self.keep, bool) and self.keep.concerns(kind.name)
        address = f"{call.name}/{kind.name}.{ordinal}" if asked else ""
        packed_args, packed_kwargs, inputs, slots = packed
        if kind.name in ("numpy", "array"):
            self.tape.problems.append(
                f"'{call.name}/{kind.name}.{ordinal}' hands values to numpy, which a replay cannot follow"
            )
        outputs: list[int] = []
        written: list[tuple[int | str, int]] = []
        for position, tensor in writes:
            value = self._made(tensor, index, len(outputs), address)
            outputs.append(value)
            written.append((position, value))
        results: list[int] = []
        for tensor in (out,) if isinstance(out, Tensor) else tensors(out):
            if writes and any(tensor is other for _, other in writes):
                results.append(-1)
                continue
            known = self._ids.get(id(tensor))
            if known is not None and known[1] in inputs and known[0]() is tensor:
                results.append(-1)  # handed back as it came in: still the same value
                continue
            value = self._made(tensor, index, len(outputs), address)
            outputs.append(value)
            results.append(value)
        if not outputs and not kind.guard:
            return -1
        if writes or rng is not None:
            self.tape.pure = False
        answer = copy.deepcopy(out) if kind.guard else None
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        grad = torch.is_grad_enabled()
        if len(written) == 1 and written[0][0] == 0 and all(value < 0 for value in results):
            if (plain := without_write(kind, func, packed_args)) is not None:
                func, packed_args = plain
                packed_kwargs = {name: item for name, item in packed_kwargs.items() if name != "inplace"}
                results, written = [written[0][1]], []
        entry = Call(
            func, packed_args, packed_kwargs, slots, tuple(results), tuple(written), grad, autocast, rng, answer
        )
        op = Op(index, kind.name, ordinal, self.stack[-1], tuple(dict.fromkeys(inputs)), tuple(outputs), self._source())
        graph.ops.append(op)
        self.tape.calls.append(entry)
        for _, tensor in writes:
            self._sync_aliases(tensor)
        if self.checkpoints is not None and self.checkpoints.due(index + 1):
            self.tape.kept = self.checkpoints.note(self._live())
        if asked and isinstance(self.keep, Kept) and self.keep.complete:
            kept = self.tape.kept  # copied where undoing the run's writes might change them
            raise Enough(graph, {value: kept[value].clone() if self.restore else kept[value] for value in kept})
        return index

    def alive(self) -> list[Tensor]:
        """The tensors with a value that are still there."""
        return [tensor for ref, _ in list(self._ids.values()) if (tensor := ref()) is not None]

    def _live(self) -> list[tuple[int, Tensor]]:
        """The values of ops whose tensors are alive; those that are not are forgotten."""
        found, values = [], self.tape.graph.values
        for key, (ref, value) in list(self._ids.items()):
            tensor = ref()
            if tensor is None:
                del self._ids[key]
            elif values[value].op >= 0:
                found.append((value, tensor))
        return found

    def pack(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], list[int], list[tuple[int, int]] | None]:
        """Arguments with references for tensors, the values referred to, and the plain slots if that is all."""
        inputs: list[int] = []
        slots: list[tuple[int, int]] = []
        packed = list(args)
        plain = True
        ids = self._ids
        for position, item in enumerate(args):
            if type(item) in ATOMS:
                continue
            if isinstance(item, Tensor):
                found = ids.get(id(item))
                value = found[1] if found is not None and found[0]() is item else self.value(item)
                inputs.append(value)
                packed[position] = Ref(value)
                slots.append((position, value))
            elif isinstance(item, dict) or (isinstance(item, (list, tuple, slice)) and not atomic(item)):
                before = len(inputs)
                packed[position] = self._packed(item, inputs)
                plain = plain and len(inputs) == before
        packed_kwargs = kwargs
        if kwargs and not atomic(kwargs.values()):
            before = len(inputs)
            packed_kwargs = self._packed(kwargs, inputs)
            plain = plain and len(inputs) == before
        if not plain:
            return tuple(packed), packed_kwargs, inputs, None
        return tuple(packed), packed_kwargs, inputs, slots

    def _packed(self, tree: Any, inputs: list[int]) -> Any:
        """A nested argument with references for its tensors, whose values are added to `inputs`."""

        def take(tensor: Tensor) -> Ref:
            value = self.value(tensor)
            inputs.append(value)
            return Ref(value)

        return swap(tree, Tensor, take)

    def _sync_aliases(self, written: Tensor) -> None:
        """After a write: new values for the other live tensors that lie on the memory it changed."""
        others: list[Tensor] = []
        for ref, value in self._sharing(written):
            alias = ref()
            if alias is None or alias is written or any(alias is other for other in others):
                continue
            if self._ids.get(id(alias), (None, -1))[1] == value and overlap(written, alias):
                others.append(alias)
        source = written
        whole = next((other for other in others if spans(other, written)), None)
        if whole is not None and not all(spans(written, other) for other in others):
            self._alias(scattered, whole, [whole, written], written, whole)
            others = [other for other in others if other is not whole]
            source = whole
        for alias in others:
            if spans(source, alias):
                self._alias(viewed, alias, [source], alias, source)
            else:
                self.tape.problems.append(
                    f"a write through a view at {self.tape.graph.site(self.value(written))} reaches another view that "
                    "a replay cannot follow"
                )

    def _alias(
        self, func: Callable[..., Tensor], made: Tensor, sources: list[Tensor], part: Tensor, whole: Tensor
    ) -> None:
        """Log the synthetic op that gives `made` its new value."""
        offset = part.storage_offset() - whole.storage_offset()
        packed = self.pack((*sources, tuple(whole.stride()), tuple(part.shape), tuple(part.stride()), offset), {})
        graph, index = self.tape.graph, len(self.tape.graph.ops)
        call = graph.modules[self.stack[-1]]
        ordinal = call.counts.get("alias", 0)
        call.counts["alias"] = ordinal + 1
        value = self._made(made, index, 0, f"{call.name}/alias.{ordinal}")
        graph.ops.append(Op(index, "alias", ordinal, self.stack[-1], tuple(packed[2]), (value,), graph.ops[-1].source))
        self.tape.calls.append(Call(func, packed[0], {}, packed[3], (value,), (), torch.is_grad_enabled()))

    def _source(self) -> tuple[str, int, str] | None:
        """The nearest frame outside torch and outside this room."""
        frame = sys._getframe(3)
        while frame is not None:
            code = frame.f_code
            known = self._outer.get(id(code))
            if known is None:
                file = code.co_filename
                known = (code, not (file.startswith((_TORCH, _HERE)) or "/contextlib" in file))
                self._outer[id(code)] = known
            if known[1]:
                return (code.co_filename, frame.f_lineno, code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        return None


def inner_values(graph: Graph, values: Sequence[int]) -> tuple[int, ...]:
    """The values of all tensors in an output, or none where the graph's outputs are all there is to make again."""
    made = {value for value in values if value >= 0 and graph.values[value].kind in ("op", "input")}
    return () if made <= set(graph.outputs) else tuple(value if value in made else -1 for value in values)


def _holding(tensor: Tensor) -> Callable[[], Tensor]:
    """A reference that does not let go."""
    return lambda: tensor
