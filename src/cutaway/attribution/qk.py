"""QK attribution: which sources make a head attend where it does.

The score of a query and a key, before the softmax, is bilinear in what q and k read. With norms frozen both are sums
over writers (lift/frozen.py), so the score is a sum over pairs of a source on the query side and one on the key side:
Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Kamath, Ameisen et al. 2025, "Tracing Attention
Computation Through Feature Interactions". Behind a softmax only differences between keys matter: see `against`.

No layout of heads is assumed. The score's gradient at q is affine in k, and gradients of that say what each number of q
makes of each number of k; what writers add to these numbers is made by the frozen wiring, a block at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, SiteError
from ..lift import Block, Lifted, Read
from ..lift.addressing import component
from ..lift.blocks import by_slot
from ..lift.flow import Flow
from ..lift.frozen import Frozen, reader, unguarded, variants
from ..lift.ops import CHOICES, ELEMENTWISE, active, sort_name
from ..run.replay import Plan, execute, plan, stored
from ..run.structure import Ref
from ..run.tape import Tape
from ..run.trace import Trace
from .columns import Through, through
from .routed import by_expert
from .writers import behind_norms

BIAS, POSITION = "bias", "position"
_CHOSEN = CHOICES | {"amax", "logsumexp"}  # of scores: a largest one that is taken away, places that are kept


@dataclass(frozen=True, eq=False)
class QKAttribution:
    """A head's score, divided: `table` [batch, query sources, key sources] adds up to `score` [batch].

    Sources are writers of the edge graph and position embeddings; `bias` is what a side reads without any. What does
    not depend on a side's reading (relative biases, masks) stands under `position` of that side. `error` is the largest
    difference between the sum and the recorded score, relative to the largest score.
    """

    head: str
    query_sources: tuple[str, ...]
    key_sources: tuple[str, ...]
    table: Float[Tensor, "batch query_sources key_sources"]
    score: Float[Tensor, " batch"]
    error: float
    readers: tuple[str, str]
    facts: dict[str, Any]

    def top(self, count: int = 10) -> list[tuple[str, str, float]]:
        """(query source, key source, mean over examples) of the largest parts of the score, by size."""
        mean = self.table.mean(0)
        order = mean.flatten().abs().topk(min(count, mean.numel())).indices.tolist()
        pairs = [divmod(place, mean.shape[1]) for place in order]
        return [(self.query_sources[row], self.key_sources[column], float(mean[row, column])) for row, column in pairs]

    def edges(self) -> dict[str, float]:
        """By edge (`writer -> L1.attn.h1.k`): what the score loses on average when that edge alone is cut."""
        mean = self.table.mean(0)
        found: dict[str, float] = {}
        for names, sums, reads in (
            (self.query_sources, mean.sum(1), self.readers[0]), (self.key_sources, mean.sum(0), self.readers[1])
        ):  # fmt: skip
            found |= {f"{name} -> {reads}": float(part) for name, part in zip(names, sums, strict=True)}
        return {name: part for name, part in found.items() if not name.startswith((f"{BIAS} ->", f"{POSITION} ->"))}

    def beside(self, edges: Iterable[str], least: float = 0.05) -> dict[str, dict[str, float]]:
        """A circuit's `edges` next to this table: those into this head's q and k that are in "both", in the "circuit"
        alone or in the "table" alone, with what the score loses without each.

        The table names an edge from `least` of its largest one on.
        """
        parts = self.edges()
        floor = least * max((abs(part) for part in parts.values()), default=0.0)
        named = {name for name, part in parts.items() if abs(part) >= floor}
        inside = {edge for edge in edges if edge.endswith(tuple(f" -> {read}" for read in self.readers))}
        sorts = {"both": inside & named, "circuit": inside - named, "table": named - inside}
        return {
            sort: {name: parts.get(name, 0.0) for name in sorted(found, key=lambda name: -abs(parts.get(name, 0.0)))}
            for sort, found in sorts.items()
        }

    def __str__(self) -> str:
        rows = [f"{value:+10.4f}  {query} · {key}" for query, key, value in self.top()]
        return "\n".join([f"{self.head}: score {float(self.score.mean()):+.4f} on average", *rows])


def explain_attention(
    trace: Trace, head: str, *, query: int = -1, key: int | str | None = None, against: int | str | None = None
) -> QKAttribution:
    """Divide a head's score at a query among pairs of sources (query side, key side).

    `key`: a position; None: the key that each example attends to most; "pattern": the mean over keys as attended to.
    `against`: nothing, a position, or "mean" over the keys that the query sees; that score is taken away.
    Raises SiteError for no such head and InputError for no such position, or one that the query cannot see.
    """
    if trace.interventions:
        raise InputError("Attention is explained in a recording, and a run with interventions is none; record it anew.")
    lifted: Lifted = trace.lift()
    block, _, slot = component(lifted, head, reading=False)
    if block.kind != "attention" or slot is None:
        raise SiteError(f"'{head}' is no head of an attention; name one, such as '{block.name}.h0'.")
    inside = _Inside(trace, lifted, block)
    scores = inside.recorded[..., slot, :, :]
    if not -scores.shape[-2] <= query < scores.shape[-2]:
        raise InputError(f"There is no query {query}; '{block.name}' has {scores.shape[-2]}.")
    weights = _weights(scores[..., query, :], key, against)

    def chosen(found: Tensor) -> Tensor:  # [batch]: the score asked for
        row = found[..., slot, query, :]
        return (torch.where(weights == 0, 0.0, row) * weights).flatten(1).sum(1)

    table, names = inside.table(chosen)
    score = chosen(inside.recorded).detach()
    error = float((table.sum((1, 2)) - score).abs().max()) / (float(score.abs().max()) or 1.0)
    reads = {read.port: read for read in block.reads}
    sides = tuple(_reader(block, reads[port], slot) for port in "qk")
    facts = {
        "query": query % scores.shape[-2], "key": "attended most" if key is None else key, "against": against,
        "norms": "frozen",
    }  # fmt: skip
    return QKAttribution(head, *names, table, score, error, (sides[0], sides[1]), facts)


def _reader(block: Block, read: Read, slot: int) -> str:
    names = block.reader_names(read)
    return names[slot * len(names) // block.slots.count]


def _weights(row: Tensor, key: int | str | None, against: int | str | None) -> Tensor:
    """[batch, (windows,) keys]: how much each key's score counts."""
    pattern = row.softmax(-1)

    def one(asked: int | str | None) -> Tensor:
        if isinstance(asked, int):
            if not -row.shape[-1] <= asked < row.shape[-1]:
                raise InputError(f"There is no key {asked}; the query has {row.shape[-1]}.")
            if bool((pattern[..., asked] == 0).any()):
                raise InputError(f"The query does not see key {asked} in every example; choose another.")
            return torch.nn.functional.one_hot(torch.tensor(asked % row.shape[-1]), row.shape[-1]).expand_as(row)
        known = {
            None: lambda: torch.zeros_like(row).scatter(-1, row.argmax(-1, keepdim=True), 1.0),
            "pattern": lambda: pattern,
            "mean": lambda: (pattern > 0) / (pattern > 0).sum(-1, keepdim=True),
        }
        if asked not in known:
            raise InputError(f"A key is a position, 'pattern', 'mean' or None, not {asked!r}.")
        return known[asked]()

    found = one(key).to(row)
    return found if against is None else found - one(against).to(row)


class _Inside:
    """What lies between the reads of an attention and its scores, and what writers add to those reads."""

    def __init__(self, trace: Trace, lifted: Lifted, block: Block) -> None:
        self.block = block
        flow, blocks = by_expert(*behind_norms(lifted, lifted.blocks))
        self.reads = [next(read.value for read in block.reads if read.port == port) for port in "qk"]
        self.frozen = Frozen(flow, [*lifted.sources, *blocks, lifted.output], reader(flow), self.reads)
        self.sources = [*lifted.sources, *lifted.constants, *blocks]
        found = trace.locate(f"{block.name}@{block.step}.scores" if block.step else f"{block.name}.scores")
        outer = {found.address.split("//")[0]} if "//" in found.address else set()
        tape = trace.tape_with(outer) if outer else lifted.tape
        self.scores, _ = trace._find(tape, found.address)
        ports = {read: trace._find(tape, lifted.tape.graph.site(read))[0] for read in self.reads}
        self.ports = [ports[read] for read in self.reads]
        inner = [tape.graph.ops[step.op] for step in plan(tape, [], [self.scores], self.ports).steps]
        shifts = [value for op in inner if sort_name(op) in _CHOSEN for value in op.outputs]  # held as they were
        self.steps = unguarded(tape, plan(tape, [], [self.scores], [*self.ports, *shifts]))
        self.tape = held_bends(tape, lifted.flow, [step.op for step in self.steps.steps])
        self.batch, self.windowed = lifted.flow.batch, found
        with torch.no_grad():
            whole = execute(tape, plan(tape, [], [self.scores, *self.ports, *shifts]))
        self.shifts = {value: whole[value] for value in shifts}
        self.at = [whole[port].detach() for port in self.ports]
        self.recorded = self._shaped(whole[self.scores].detach())

    def _shaped(self, value: Tensor) -> Tensor:
        """[batch, (windows,) head, query, key]."""
        slots, found = self.block.slots, self.windowed
        value = found.unfolded(value)
        if value.ndim == 3:
            value = value.unflatten(0, (-1, slots.count)) if slots.tiled else value[:, None]
        if found.axes[1:3] == ("head", "window"):
            value = value.transpose(1, 2)
        return value

    def score(self, q: Tensor, k: Tensor) -> Tensor:
        """The scores for what q and k read."""
        given = {**self.shifts, **dict(zip(self.ports, (q, k), strict=True))}
        return self._shaped(execute(self.tape, self.steps, given=given)[self.scores])

    def table(self, chosen: Any) -> tuple[Tensor, tuple[tuple[str, ...], tuple[str, ...]]]:
        """The table of a scalar an example, and the names of its rows and columns."""
        same = self.ports[0] == self.ports[1]
        if same:
            raise InputError(f"'{self.block.name}' compares a value with itself, so its sides cannot be told apart.")
        zero_q, zero_k = (torch.zeros_like(value) for value in self.at)
        with torch.enable_grad():
            q = zero_q.clone().requires_grad_()
            k = self.at[1].clone().requires_grad_()
            slope = _slope(chosen(self.score(q, k)).sum(), q, True)
            places = self._places(self._rows(slope.detach(), 0).ne(0))
            held = self._rows(slope, 0)[:, places]  # [batch, numbers of q]
            across = [self._rows(found, 1) for found in _slopes(held.sum(0), k)]
            bare = _slope(chosen(self.score(q, zero_k)).sum(), q)
            only = _slope(chosen(self.score(zero_q, k)).sum(), k)
            constant = chosen(self.score(zero_q, zero_k)).detach()
        numbers = self._rows(only, 1).shape[1]
        flat = torch.stack(across, 1) if across else only.new_zeros(self.batch, 0, numbers)  # [batch, of q, of k]
        seen = self._places(flat.ne(0).any(1) | self._rows(only, 1).ne(0))
        names_q, left = self._contributions(0, places)
        names_k, right = self._contributions(1, seen)
        pairs = torch.einsum("abn,bnm,cbm->bac", left, flat[:, :, seen], right)
        queries = torch.einsum("abn,bn->ba", left, self._rows(bare, 0)[:, places])
        keys = torch.einsum("cbm,bm->bc", right, self._rows(only, 1)[:, seen])
        upper = torch.cat([pairs, queries[:, :, None]], 2)
        lower = torch.cat([keys, constant[:, None]], 1)[:, None]
        return torch.cat([upper, lower], 1), ((*names_q, POSITION), (*names_k, POSITION))

    @staticmethod
    def _places(used: Tensor) -> Tensor:
        return used.any(0).nonzero().flatten()

    def _rows(self, value: Tensor, side: int) -> Tensor:
        """[batch, numbers]: a read by example, which lies slowest on its axis."""
        first = self.block.reads[side].slots.first
        return value.unflatten(first, (self.batch, -1)).movedim(first, 0).flatten(1)

    def _contributions(self, side: int, places: Tensor) -> tuple[list[str], Tensor]:
        """The names of the writers of a side and of its bias, and [sources, batch, places]: what each adds there."""
        value, frozen = self.reads[side], self.frozen
        blocks = {block.write: block for block in self.sources if block.write >= 0}
        steps = frozen.plan([value], {*frozen.writes, *blocks} - ({value} if value not in blocks else set()))
        feeds = {write: block for write, block in blocks.items() if write in steps.stored}
        held = reader(frozen.flow)(list(feeds))
        zeros = {write: torch.zeros_like(tensor) for write, tensor in held.items()}

        def whole(made: Tensor) -> Tensor:
            return self._rows(made, side)[:, places]

        last, at = through(frozen.flow, value, steps), value
        take: Callable[[Tensor], Tensor] = whole
        if last is not None and last.layout and len(places):
            at, take = last.source, self._columns(last, side, places)
        stops = {*frozen.writes, *blocks} - ({at} if at not in blocks else set())
        enter = unguarded(frozen.tape, frozen.plan([at], stops))
        met = {made for step in enter.steps for made in frozen.tape.graph.ops[step.op].outputs} | {*enter.stored, at}
        with torch.no_grad():
            still = frozen.run(frozen.plan(met, stops), zeros)
            nothing, bare = whole(frozen.run(steps, zeros)[value]), take(still[at])
        names, parts = [], []
        for write, block in feeds.items():
            alone = _behind(frozen.tape, enter, write, at)

            def read(world: dict[int, Tensor], alone: Plan = alone) -> Tensor:
                return take(execute(frozen.tape, alone, given={**still, **world})[at])

            made = variants(read, {write: by_slot(held[write], block.slots)}) - bare
            steps_of = [f"{name}@{block.step}" if block.step else name for name in block.slot_names()]
            names += steps_of
            parts.append(made)
        return [*names, BIAS], torch.cat([*parts, nothing[None]]).detach()

    def _columns(self, last: Through, side: int, places: Tensor) -> Callable[[Tensor], Tensor]:
        """What makes the numbers at `places` [batch, places] of the source of the last projection, and no others."""
        tape, shape = self.frozen.flow.tape, self.frozen.flow.shape(last.made)
        numbered = torch.arange(prod(shape), dtype=torch.float64).view(shape)
        wanted = self._rows(execute(tape, last.after, given={last.made: numbered})[self.reads[side]], side)[:, places]
        rows, row = torch.unique(wanted.long() // shape[-1], return_inverse=True)
        columns, column = torch.unique(wanted.long() % shape[-1], return_inverse=True)
        weight = stored(tape, last.weight).detach()
        weight = weight[columns].T if last.by_row else weight[:, columns]
        return lambda source: (source.flatten(0, -2)[rows] @ weight).flatten()[row * len(columns) + column]


def _behind(tape: Tape, whole: Plan, source: int, goal: int) -> Plan:
    """The steps of a plan that a source reaches, with all else that they read as given."""
    steps, reached, read = [], {source}, {goal}
    for step in whole.steps:
        if not reached.isdisjoint(step.reads):
            steps.append(replace(step, free=()))
            reached.update(tape.graph.ops[step.op].outputs)
            read.update(step.reads)
    given = (read - reached) | ({source} if source in read else set())
    return Plan(steps, sorted(given), {goal: goal}, len(steps))


def _slope(number: Tensor, at: Tensor, again: bool = False) -> Tensor:
    """The gradient of a number, zero where it does not depend on `at`; `again`: its own gradient may be asked for."""
    found = None
    if number.requires_grad:
        (found,) = torch.autograd.grad(number, at, retain_graph=again, create_graph=again, allow_unused=True)
    return torch.zeros_like(at) if found is None else found


def _slopes(numbers: Tensor, at: Tensor) -> Tensor:
    """The gradient of every number, [numbers, *at]: all at once, or one by one where an op has no batching rule."""
    if not len(numbers) or not numbers.requires_grad:
        return at.new_zeros(len(numbers), *at.shape)
    try:
        each = torch.eye(len(numbers)).to(numbers)
        (found,) = torch.autograd.grad(numbers, at, each, retain_graph=True, is_grads_batched=True, allow_unused=True)
    except RuntimeError:
        return torch.stack([_slope(number, at, True).detach() for number in numbers])
    return at.new_zeros(len(numbers), *at.shape) if found is None else found.detach()


def held_bends(tape: Tape, flow: Flow, ops: list[int]) -> Tape:
    """The tape with elementwise ops among `ops` (a cap on scores) held at the factor that they had in the run."""
    graph, calls, bends = tape.graph, list(tape.calls), []
    moving = graph.cone(flow.activations & set(range(len(graph.values))))
    for index in ops:
        op = graph.ops[index]
        given = active(op, moving)
        if sort_name(op) in ELEMENTWISE and len(given) == 1 and len(op.outputs) == 1 and given[0] in op.inputs:
            bends.append((op, given[0]))
    if not bends:
        return tape
    wanted = [value for op, source in bends for value in (source, op.outputs[0])]
    with torch.no_grad():
        values = execute(tape, plan(tape, [], wanted))
    for op, source in bends:
        before, after = values[source], values[op.outputs[0]]
        factor = torch.where(before == 0, 0.0, after / torch.where(before == 0, 1.0, before))
        calls[op.index] = replace(
            calls[op.index], func=lambda x, factor=factor: x * factor, args=(Ref(source),), kwargs={},
            slots=[(0, source)], written=(),
        )  # fmt: skip
    return replace(tape, calls=calls)
