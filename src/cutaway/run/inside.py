"""Opening an op: run one recorded call again at ATen level with fused backends off, and put its parts in its place.

There is no registry of ops: whatever the call is made of below autograd becomes its inside. SDPA falls apart into its
matrix products and softmax, nn.LSTM, GRU and RNN into steps and gates.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import SiteError
from ..graph import Graph, ModuleCall, Op, Value
from .calls import kind_of
from .keep import Checkpoints
from .replay import execute, plan
from .structure import Ref, swap, tensors
from .tape import Call, Logger, Tape

OPAQUE = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention"})


class _AtenMode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and shielding it from the compiler would import all of that

    def __init__(self, log: Logger) -> None:
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = kind_of(func)
        writes: list[tuple[int | str, Tensor]] = []
        if kind.writes:
            for place, argument in enumerate(func._schema.arguments):
                if argument.alias_info is None or not argument.alias_info.is_write:
                    continue
                written = args[place] if place < len(args) else kwargs.get(argument.name)
                if isinstance(written, Tensor):
                    writes.append((place if place < len(args) else argument.name, written))
            self.log.prepare_write([tensor for _, tensor in writes])
        packed = self.log.pack(args, kwargs)
        rng = torch.get_rng_state() if kind.random else None
        out = func(*args, **kwargs)
        if rng is not None and torch.equal(rng, torch.get_rng_state()):
            rng = None
        self.log.log(kind, func, args, kwargs, packed, out, writes, rng)
        return out


def _parts(tape: Tape, index: int) -> tuple[Logger, list[int], list[int]]:
    """The inside of op `index`: its log, the log's leaves for the op's inputs, and the values of its outputs."""
    op, call = tape.graph.ops[index], tape.calls[index]
    values = execute(tape, plan(tape, [], op.inputs))
    log = Logger(Checkpoints() if tape.sparse else True)
    held = {value: values[value].detach() for value in op.inputs}
    entries = [log.leaf(held[value], "input", str(value)) for value in op.inputs]
    args = swap(call.args, Ref, lambda ref: held[ref.id])
    kwargs = swap(call.kwargs, Ref, lambda ref: held[ref.id])
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())  # what torch imports at first use adds filters
        stack.enter_context(torch.no_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
        torch._C._set_mkldnn_enabled(False)
        if call.rng is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.set_rng_state(call.rng)
        if call.autocast is not None:
            stack.enter_context(torch.autocast("cpu", dtype=call.autocast))
        stack.enter_context(_AtenMode(log))
        out = call.func(*args, **kwargs)
    results = [log.value(tensor) for tensor in tensors(out)]
    return log, entries, results


def opened(tape: Tape, indices: Iterable[int]) -> Tape:
    """A tape in which the ops at `indices` are replaced by their parts, values of everything else keeping their ids.

    Raises SiteError for an op without an inside.
    """
    wanted = set(indices)
    old = tape.graph
    values = [Value(v.id, v.kind, v.name, -1, v.port, v.shape, v.dtype) for v in old.values]
    new = Tape(
        Graph(values, [], [_copy(call) for call in old.modules], list(old.inputs), list(old.outputs)),
        [], dict(tape.leaves), dict(tape.kept), list(tape.problems), dict(tape.seals),
        sparse=tape.sparse,
    )  # fmt: skip
    starts: list[int] = []
    for op, call in zip(old.ops, tape.calls, strict=True):
        starts.append(len(new.graph.ops))
        if op.index in wanted:
            _inline(tape, op, new)
        else:
            _append(new, Op(-1, op.name, op.ordinal, op.module, op.inputs, op.outputs, op.source, op.inside), call)
    starts.append(len(new.graph.ops))
    for module in new.graph.modules:
        module.first, module.last = starts[module.first], starts[module.last]
    return new


def _inline(tape: Tape, op: Op, new: Tape) -> None:
    log, entries, results = _parts(tape, op.index)
    if len(log.tape.calls) < 2:
        raise SiteError(f"{tape.graph.address(op)} has no inside: torch runs it as a single operation.")
    outside = dict(zip(entries, op.inputs, strict=True))
    address = tape.graph.address(op)
    for result, value in zip(results, tape.calls[op.index].results, strict=False):
        if value >= 0 and result not in outside:
            outside[result] = value
    for inner in log.tape.graph.values:
        if inner.id in outside:
            continue
        outside[inner.id] = len(new.graph.values)
        new.graph.values.append(
            Value(outside[inner.id], inner.kind, f"{address}//{inner.id}", -1, inner.port, inner.shape, inner.dtype)
        )
        if inner.op < 0:
            new.leaves[outside[inner.id]] = log.tape.leaves[inner.id]
        elif inner.id in log.tape.kept:
            new.kept[outside[inner.id]] = log.tape.kept[inner.id]
    for part, call in zip(log.tape.graph.ops, log.tape.calls, strict=True):
        inputs = tuple(outside[value] for value in part.inputs)
        outputs = tuple(outside[value] for value in part.outputs)
        moved = Call(
            call.func,
            swap(call.args, Ref, lambda ref: Ref(outside[ref.id])),
            swap(call.kwargs, Ref, lambda ref: Ref(outside[ref.id])),
            None if call.slots is None else [(place, outside[value]) for place, value in call.slots],
            tuple(outside[value] if value >= 0 else -1 for value in call.results),
            tuple((place, outside[value]) for place, value in call.written),
            tape.calls[op.index].grad, None, call.rng, call.answer,
        )  # fmt: skip
        _append(new, Op(-1, part.name, part.ordinal, op.module, inputs, outputs, op.source, address), moved)


def _append(tape: Tape, op: Op, call: Call) -> None:
    op.index = len(tape.graph.ops)
    for port, value in enumerate(op.outputs):
        found = tape.graph.values[value]
        found.op, found.port = op.index, port
        found.kind, found.name = "op", ""
    tape.graph.ops.append(op)
    tape.calls.append(call)


def _copy(call: ModuleCall) -> ModuleCall:
    return ModuleCall(call.path, call.call, call.cls, call.parent, call.first, call.last, call.inputs, call.outputs)
