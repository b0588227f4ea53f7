"""Gradients that a network takes inside its own forward: what a replay must make again so that they can be taken again.

A call of `backward` is recorded as what it stands for: `torch.autograd.grad`, added to what the leaves hold.

A recorded call of `torch.autograd.grad` reads the values it differentiates and those it differentiates by. Its result
also depends on how one came from the other, so a replay that makes the gradient again makes all ops between them again,
from inputs that require gradients. An edit between them then acts as a hook does in the network itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ModelError
from .structure import Ref, swap
from .tape import Tape


@dataclass(frozen=True)
class Inner:
    """One call of autograd: its op, the ops it differentiates, and the values it differentiates by."""

    op: int
    span: frozenset[int]
    roots: frozenset[int]


def inner_gradients(tape: Tape) -> list[Inner]:
    """Every call of `torch.autograd.grad` on a tape."""
    found = []
    for op, call in zip(tape.graph.ops, tape.calls, strict=True):
        if op.name != "grad" or call.func is not torch.autograd.grad:
            continue
        by = call.args[1] if len(call.args) > 1 else call.kwargs["inputs"]
        roots = _references(by)
        ahead = tape.graph.cone(roots)
        span: set[int] = set()
        waiting = [value for value in op.inputs if value not in roots]
        while waiting:
            maker = tape.graph.values[waiting.pop()].op
            if maker >= 0 and maker not in span and any(value in ahead for value in tape.graph.ops[maker].inputs):
                span.add(maker)
                waiting.extend(tape.graph.ops[maker].inputs)
        found.append(Inner(op.index, frozenset(span), frozenset(roots)))
    return found


@contextmanager
def differentiating(tape: Tape, op: int) -> Iterator[None]:
    """Say what failed when a gradient cannot be taken because an edit cuts what it is taken through."""
    try:
        yield
    except RuntimeError as failure:
        if tape.calls[op].func is not torch.autograd.grad:
            raise
        where = tape.graph.address(tape.graph.ops[op])
        raise ModelError(
            f"The network takes a gradient inside its forward ({where}), and an edit cuts what it is taken through; "
            "an edit that keeps a part of the value, such as add or scale, does not."
        ) from failure


def _references(tree: Any) -> set[int]:
    found: set[int] = set()
    swap(tree, Ref, lambda ref: found.add(ref.id))
    return found


def made_again(tape: Tape, targets: Iterable[int], touched: set[int], given: set[int]) -> tuple[set[int], set[int]]:
    """The ops to make again for gradients that must be taken again, and the values that require gradients for it.

    A gradient must be taken again when an edit touches it, or a target needs it and it was not kept.
    """
    inner = inner_gradients(tape)
    if not inner:
        return set(), set()
    ops: set[int] = set()
    roots: set[int] = set()
    wanted = list(targets)
    seen: set[int] = set()
    while wanted:
        maker = tape.graph.values[wanted.pop()].op
        if maker >= 0 and maker not in seen:
            seen.add(maker)
            wanted.extend(tape.graph.ops[maker].inputs)
    for one in inner:
        kept = all(value in given for value in tape.graph.ops[one.op].outputs)
        if one.op in seen and (one.op in touched or one.span & touched or not kept):
            ops |= one.span | {one.op}
            roots |= one.roots
    return ops, roots
