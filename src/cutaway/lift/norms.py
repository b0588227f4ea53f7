"""Norms written out: products of a value and a scale that reductions of the same value give.

`x · rsqrt(mean(x²) + eps)`, `(x − mean) / std`, `x / x.norm()` and their like. A gate is no norm (its scale comes from
elsewhere, or from no reduction), and neither is an activation such as `x · sigmoid(x)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..graph import Op
from ..run.structure import Ref
from . import ops
from .flow import Flow
from .ops import active, sort_name

REDUCTIONS = frozenset("mean sum var std var_mean norm linalg_vector_norm vector_norm logsumexp amax max".split())
DIVISIONS = frozenset("div truediv divide idiv itruediv".split())
_PRODUCTS = frozenset("mul rmul imul multiply".split()) | DIVISIONS


def scale_of(flow: Flow, op: Op, linear: Callable[[int], bool]) -> int | None:
    """The scale in a product that normalises a value, None for any other op.

    `linear` says of a value whether it is linear in what blocks write.
    """
    moving = active(op, flow.activations)
    if sort_name(op) not in _PRODUCTS or len(moving) != 2 or op.index not in flow.useful:
        return None
    pairs = [(moving[0], moving[1]), (moving[1], moving[0])]
    if sort_name(op) in DIVISIONS:
        first = flow.tape.calls[op.index].args[0]
        pairs = [pair for pair in pairs if isinstance(first, Ref) and pair[0] == first.id]
    for value, scale in pairs:
        if linear(value) and _reduces(flow, scale, _origins(flow, value)):
            return scale
    return None


def only_normalises(flow: Flow, members: Iterable[int], write: int) -> bool:
    """Whether ops make of what they read something linear, but for norms."""
    bent: set[int] = set()
    for op in (flow.graph.ops[index] for index in sorted(members)):
        crooked = any(value in bent for value in op.inputs)
        if crooked or not flow.linear[op.index]:
            if scale_of(flow, op, lambda value: value not in bent) is None:
                bent.update(op.outputs)
    return write not in bent


def _origins(flow: Flow, value: int) -> set[int]:
    """A value and what it is a rearrangement, shift, rescaling or product of."""
    found: set[int] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        op = flow.maker(current)
        if current in found:
            continue
        found.add(current)
        if op is not None and (flow.is_soft(op) or sort_name(op) in _PRODUCTS):
            waiting.extend(active(op, flow.activations))
    return found


def _reduces(flow: Flow, scale: int, origins: set[int]) -> bool:
    """Whether a value comes from `origins` alone, by way of a reduction and without a contraction."""
    waiting, seen, reduced = [scale], set[int](), False
    while waiting:
        value = waiting.pop()
        if value in origins or value in seen:
            continue
        seen.add(value)
        op = flow.maker(value)
        if op is None or sort_name(op) in ops.CONTRACTION or sort_name(op) == ops.SDPA:
            return False
        reduced = reduced or sort_name(op) in REDUCTIONS
        waiting.extend(active(op, flow.activations))
    return reduced
