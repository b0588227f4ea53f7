"""Rules of relevance propagation, an op each: how gradients are carried back, with every value left as it is.

A table names a rule for a sort of op (see lift/ops.py); linear ops and those in no table carry gradients as torch does,
which is LRP's 0-rule. What a rule does is put into the calls of a copied tape, so any plan on it follows the rules.

Bach et al. 2015 (LRP); Arras et al. 2017 (arXiv:1706.07206: a gate in a recurrent cell is held, what it multiplies gets
all); Ali et al. 2022 (arXiv:2202.07304: LN-rule, AH-rule); Achtibat et al. 2024 (AttnLRP, arXiv:2402.05602); Jafari et
al. 2024 (MambaLRP, arXiv:2406.07592); Jafari et al. 2025 (RelP, arXiv:2508.21258).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..graph import Op
from ..lift import ops
from ..lift.flow import Flow
from ..lift.frozen import arguments, linear_norm
from ..lift.norms import DIVISIONS, scale_of
from ..lift.ops import active, sort_name
from ..run.structure import Ref
from ..run.tape import Call
from .edges import EdgeGraph

_NEAR = 1e-4  # below this a nonlinearity's quotient f(x) / x is taken at this x


@dataclass(frozen=True)
class Made:
    """A call as a rule sees it: its name and function, its arguments, the places of its activations among them, and
    the places of those that scale or gate the others."""

    name: str
    call: Call
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    places: tuple[int | str, ...]
    gates: tuple[int | str, ...]

    def __getitem__(self, place: int | str) -> Tensor:
        found: Tensor = self.args[place] if isinstance(place, int) else self.kwargs[place]
        return found

    def run(self, change: Mapping[int | str, Tensor]) -> Any:
        """The call with some arguments changed."""
        args = [change.get(place, item) for place, item in enumerate(self.args)]
        return self.call.func(*args, **{name: change.get(name, item) for name, item in self.kwargs.items()})


Rule = Callable[[Made], Any]


def carried(value: Tensor, way: Tensor) -> Tensor:
    """`value`, with the gradient of `way`."""
    return value.detach() + torch.nan_to_num(way - way.detach())


def quotient(made: Made) -> Any:
    """f of one activation: (f(x) - f(0)) / x, held (the identity rule; f(0) counts as a bias)."""
    x, y = made[made.places[0]].detach(), made.run({})
    if len(made.places) != 1 or y.shape != x.shape:
        return y
    near = torch.where(x.abs() < _NEAR, _NEAR, x)
    zero = made.run({made.places[0]: torch.zeros_like(x)})
    if not bool(torch.isfinite(zero).all()):
        return y
    share = (made.run({made.places[0]: near}) - zero) / near
    return carried(y, made[made.places[0]] * share.detach())


def half(made: Made) -> Any:
    """A product of activations: each receives half of its gradient (the half rule)."""
    return made.run({place: _part(made[place], 1 / len(made.places)) for place in made.places})


def ratio(made: Made) -> Any:
    """A division by an activation: what it is divided by is held, as a norm's scale is."""
    below = 0 if made.name == "rtruediv" else 1
    return made.run({place: made[place].detach() for place in made.places if place in (below, "other")})


def signal(made: Made) -> Any:
    """A product of which a part is held, a gate say: what it lets through receives all."""
    if not made.gates or len(made.gates) == len(made.places):
        return half(made)
    return made.run({place: made[place].detach() for place in made.gates})


def scale_held(made: Made) -> Any:
    """The product by which a norm that is written out scales: the scale is held (the LN-rule)."""
    return made.run({place: made[place].detach() for place in made.gates})


def norm(made: Made) -> Any:
    """A norm in one call: its scale is held."""
    out = made.run({})
    x = made[made.places[0]]
    way = linear_norm(made.name, lambda x: _first(made.run({made.places[0]: x})), x.detach(), _given(made))(x)
    return carried(out, way) if isinstance(out, Tensor) else (carried(out[0], way), *out[1:])


def writer_norm(made: Made) -> Any:
    """What a writer's heads add by way of its own norm (see writers.py): its scale is held."""
    return made.call.func(*made.args, at=made[0].detach())


def held(made: Made) -> Any:
    """Nothing is carried: what the call gives is taken as it is (the AH-rule, for patterns of attention)."""
    return made.run({place: made[place].detach() for place in made.places})


def pattern_held(made: Made) -> Any:
    """Attention in one call, with its pattern held: values receive all."""
    return made.run({place: made[place].detach() for place in made.places if place in (0, 1, "query", "key")})


def shared(made: Made) -> Any:
    """Attention in one call, as two products: values receive half, queries and keys a quarter each."""
    shares = {place: 0.25 if place in (0, 1, "query", "key") else 0.5 for place in made.places}
    return made.run({place: _part(made[place], share) for place, share in shares.items()})


def _part(x: Tensor, share: float) -> Tensor:
    return carried(x, x * share)


def _first(out: Any) -> Tensor:
    found: Tensor = out if isinstance(out, Tensor) else out[0]
    return found


def _given(made: Made) -> dict[str, Any]:
    return arguments(made.call, made.args, made.kwargs)


Table = Mapping[str, Rule]
# What an op is besides its name: see `_sort`.
SCALE, PATTERN, GATED = "a norm's scale", "an attention's pattern", "a product that gates"
WRITER = "head_results"
_MULTIPLIES = (ops.PRODUCTS | ops.CONTRACTION) - frozenset("where masked_fill lerp".split())
_DIVIDES = DIVISIONS | {"rtruediv"}
LN_RULE: Table = {**dict.fromkeys(ops.NORMS, norm), SCALE: scale_held, WRITER: writer_norm}
_BOTH: Table = {
    **dict.fromkeys(ops.ELEMENTWISE, quotient), **dict.fromkeys(_MULTIPLIES, half), **dict.fromkeys(_DIVIDES, ratio),
    GATED: signal, **LN_RULE,
}  # fmt: skip
RELP: Table = {**_BOTH, PATTERN: held, ops.SDPA: pattern_held}
ATTNLRP: Table = {**_BOTH, ops.SDPA: shared}


def ruled(graph: EdgeGraph, table: Table) -> EdgeGraph:
    """The graph with a table's rules in force wherever gradients are carried through it."""
    flow = graph.wiring.flow
    blocks = [part.block for part in graph.parts]
    patterns = {block.extra["pattern"] for block in blocks if "pattern" in block.extra}
    looped = set(flow.looped.places) | {op for block in blocks if block.kind == "ssm" for op in block.members}
    calls = list(flow.tape.calls)
    still = patterns if PATTERN in table else set[int]()  # a held pattern is no factor of what it is multiplied with
    for op in flow.graph.ops:
        moving = [value for value in active(op, flow.activations) if value not in still]
        call = calls[op.index]
        if not moving or not op.outputs or call.written or call.rng is not None:
            continue
        sort, gates = _sort(flow, op, patterns, looped)
        if (sort in (PATTERN, WRITER) or not flow.linear[op.index]) and (rule := table.get(sort)) is not None:
            calls[op.index] = _under(rule, op, call, moving, gates)
    found = copy.copy(graph)
    found.tape = replace(flow.tape, calls=calls)
    return found


def _sort(flow: Flow, op: Op, patterns: set[int], looped: set[int]) -> tuple[str, list[int]]:
    """(the sort of an op under which a table has its rule, the values that scale or gate in it)."""
    name, moving = sort_name(op), active(op, flow.activations)
    if not patterns.isdisjoint(op.outputs):
        return PATTERN, []
    if (scale := scale_of(flow, op, lambda value: True)) is not None:
        return SCALE, [scale]
    if name in _MULTIPLIES - DIVISIONS and len(moving) == 2 and (own := _own_factor(flow, moving)):
        return GATED, own
    if op.index in looped and name in _MULTIPLIES - DIVISIONS and len(moving) > 1:
        return GATED, [value for value in moving if _is_gate(flow, value)]
    return name, []


def _own_factor(flow: Flow, factors: list[int]) -> list[int]:
    """The factor g(x) of a nonlinearity written out as x · g(x), as GELU and SiLU may be; nothing in other products."""
    for value, other in (factors, factors[::-1]):
        origins = flow.back(value, flow.is_soft)
        ends = flow.back(other, lambda op: flow.is_soft(op) or flow.is_bend(op))
        if ends == origins and flow.back(other, flow.is_soft) != origins:
            return [other]
    return []


_GATES = frozenset("sigmoid hardsigmoid exp softplus".split())


def _is_gate(flow: Flow, value: int) -> bool:
    """Whether a value is a rearrangement or shift of what a gate's nonlinearity gives."""
    while (op := flow.maker(value)) is not None and len(moving := active(op, flow.activations)) == 1:
        if sort_name(op) in _GATES:
            return True
        if not flow.is_soft(op):
            return False
        value = moving[0]
    return False


def _under(rule: Rule, op: Op, call: Call, moving: Iterable[int], gates: list[int]) -> Call:
    """The call under a rule."""
    listed: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    at = {place: item.id for place, item in listed if isinstance(item, Ref)}
    products = sort_name(op) in ("addmm", "baddbmm", "addbmm", "addmv", "addcmul")  # what is added to is no factor
    places = tuple(place for place, value in at.items() if value in moving and not (products and place == 0))
    gating = tuple(place for place in places if at[place] in gates)
    if not places:
        return call
    name = sort_name(op)
    return replace(call, func=lambda *args, **kwargs: rule(Made(name, call, args, kwargs, places, gating)))
