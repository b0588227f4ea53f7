"""Finding out whether a run's frozen wiring is one stream with attentions, and its arrays if it is.

Levels are the stream's values that are read, in order. Each must hold what the one before holds and more; each
attention must read one level and be seen from the next on; what lies between a level and a reader may treat positions
differently by a factor alone (a norm's scale). All of this is tried with numbers; one that fails gives None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.columns import ROWS, through
from ..graph import Op
from ..lift import Slots
from ..lift.ops import CONTRACTION, sort_name
from ..run.replay import Plan, execute, stored
from ..run.structure import Ref
from .direct_effects import Targets, entries
from .freezing import way
from .replacement import Attention, Replacement, Spot
from .stream_effects import Ends, Mixer, Stream, stream_effects

_NEAR = 1e-4  # relative difference that is no more than rounding


@dataclass(eq=False)
class _Levels:
    """The levels of a stream: their values, what is seen at each, and from which on each writer is seen."""

    values: list[int]
    length: int
    width: int
    seen: dict[int, int]

    def rows(self, value: Tensor) -> Float[Tensor, "*lead length width"]:
        """The rows of values [..., *shape of a level]."""
        return value.reshape(*value.shape[:-3], self.length, self.width)


class _Finder:
    """One replacement model and the pieces of its wiring."""

    def __init__(self, model: Replacement) -> None:
        self.model, self.frozen = model, model.frozen
        self.flow, self.tape = model.frozen.flow, model.frozen.tape
        self.attentions = {attention.made: attention for attention in model.attentions}
        self.stops = {*model.stops, *self.attentions}

    def root(self, value: int) -> int:
        """The last value that all that a reader gets comes through."""
        while value not in self.stops:
            op = self.flow.maker(value)
            moving = self.moving(op) if op is not None else []
            if len(moving) != 1:
                break
            value = moving[0]
        return value

    def moving(self, op: Op) -> list[int]:
        """What an op reads that writers change."""
        values = self.flow.activations - self.frozen.held | self.stops
        return [value for value in op.inputs if value in values]

    def feeders(self, value: int) -> set[int]:
        """The writers that reach a value without passing an attention."""
        if value in self.stops:
            return {value}
        return set(self.plan([value], self.stops).stored) & self.stops

    def plan(self, goals: Sequence[int], stops: set[int]) -> Plan:
        """The steps to some values; norms' scales and patterns are as they were."""
        return way(self.tape, goals, stops | self.frozen.held)

    def run(self, goals: Sequence[int], given: dict[int, Tensor]) -> dict[int, Tensor]:
        """Goals from some writers or levels; what is not given is zero."""
        steps = self.plan(goals, {*self.stops, *given} - set(goals) | set(given))
        return self.frozen.run(steps, given)

    def linear(self, goal: int, start: int, given: Tensor) -> Tensor:
        """The linear part of the wiring from one value to another, at a value."""
        zero = torch.zeros_like(given)
        return self.run([goal], {start: given})[goal] - self.run([goal], {start: zero})[goal]

    def pull(self, goal: int, start: int, cotangents: Float[Tensor, "count ..."]) -> Float[Tensor, "count ..."]:
        """Readers of a value as readers of one before it."""
        if goal == start:
            return cotangents.reshape(-1, *self.flow.shape(start))
        with torch.enable_grad():
            leaf = torch.zeros(self.flow.shape(start), requires_grad=True)
            made = self.run([goal], {start: leaf})[goal]
            (found,) = torch.autograd.grad(made, leaf, cotangents.view(-1, *made.shape), is_grads_batched=True)
        return found


def by_stream(model: Replacement, groups: Sequence[Targets], ends: Targets) -> Tensor | None:
    """The effects of all writers on all targets, `ends` being the outputs; None where wiring is no one stream."""
    if any(spot.value in {place.value for place in model.written} for group in groups for spot, _, _ in group.reads):
        return None
    finder = _Finder(model)
    if model.frozen.plan([model.output.value], finder.stops).roots:  # it differentiates inside its forward
        return None
    read = {spot.value: finder.root(spot.value) for group in (*groups, ends) for spot, _, _ in group.reads}
    read |= {attention.read: finder.root(attention.read) for attention in model.attentions}
    levels = _levels(finder, set(read.values()))
    if levels is None:
        return None
    place = {value: levels.values.index(level) for value, level in read.items()}
    mixers: list[list[Mixer]] = [[] for _ in levels.values[1:]]
    for attention in model.attentions:
        if attention.made not in levels.seen:
            continue
        at = place[attention.read]
        mixer = _mixer(finder, attention, levels, at) if levels.seen[attention.made] == at + 1 else None
        if mixer is None:
            return None
        mixers[at].append(mixer)
    writers = _writers(finder, levels)
    if writers is None:
        return None
    targets = _targets(finder, levels, groups, ends, place)
    moves = [mixer.moves for found in mixers for mixer in found]
    causal = all(not bool(one.triu(1).any()) for one in moves)
    stream = Stream(tuple(map(tuple, mixers)), levels.length, causal)
    table = stream_effects(stream, writers, targets)
    return _in_place(table, targets.columns, writers.columns, model.columns)


def _in_place(table: Tensor, rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """The table with targets and writers at their numbers; those that are there several times are added up."""
    height = int(rows.max()) + 1
    if len(rows) == height and len(columns) == width:
        return table[rows.argsort()][:, columns.argsort()]
    tall = torch.zeros(height, table.shape[1]).index_add_(0, rows, table)
    return torch.zeros(height, width).index_add_(1, columns, tall)


def _levels(finder: _Finder, values: set[int]) -> _Levels | None:
    makers, shapes = finder.flow.graph.values, {finder.flow.shape(value) for value in values}
    order = sorted(values, key=lambda value: makers[value].op)
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 3 or shape[0] != 1:
        return None
    seen: dict[int, int] = {}
    before: set[int] = set()
    for number, value in enumerate(order):
        now = finder.feeders(value)
        if not before <= now:
            return None
        seen |= dict.fromkeys(now - before, number)
        before = now
    return _Levels(order, shape[1], shape[2], seen)


def _mixer(finder: _Finder, attention: Attention, levels: _Levels, at: int) -> Mixer | None:
    """An attention's arrays."""
    shape, made, pattern = finder.flow.shape(attention.read), finder.flow.shape(attention.made), attention.pattern
    heads, length = pattern.shape[1], levels.length
    if len(shape) != 4 or len(made) != 4 or pattern.shape != (1, heads, length, length):
        return None
    if made[:3] != (1, heads, length) or shape[2] != length or shape[3] != made[3] or heads % shape[1]:
        return None
    level = levels.values[at]
    entering = finder.plan([attention.read], {*finder.stops, level})
    found = _matrix(finder, attention.read, entering, Slots(1, shape[1]))
    out = _out(finder, attention.made)
    leaving = out and _matrix(finder, out, finder.plan([out], {attention.made}), Slots(2, 1))
    if found is None or not leaving:
        return None
    source, values = found
    factors = _factors(finder, levels, source, level)
    if factors is None:
        return None
    pulled = _packed(finder, levels, source, level, values) / factors[torch.arange(len(values)) % length, None]
    pulled = pulled.view(shape[1], -1, levels.width).repeat_interleave(heads // shape[1], 0).flatten(0, 1)
    numbers = torch.arange(heads * length * made[3], dtype=torch.float64).view(made)
    lying = execute(finder.tape, finder.plan([leaving[0]], {attention.made}), given={attention.made: numbers})
    places = lying[leaving[0]].reshape(length, -1).long()
    wanted = (
        torch.arange(heads * made[3]).view(heads, made[3]) % made[3] + torch.arange(heads)[:, None] * length * made[3]
    )
    order = places[0].argsort()
    if not torch.equal(places[0][order], wanted.flatten()) or not torch.equal(
        places, places[:1] + torch.arange(length)[:, None] * made[3]
    ):
        return None
    return Mixer(pulled, pattern[0] * factors, leaving[1].T[order])


def _matrix(finder: _Finder, read: int, steps: Plan, slots: Slots) -> tuple[int, Tensor] | None:
    """What the last contraction before a value reads, and its matrix, slot by slot; None where the value is not what
    comes out of it, position by position."""
    last, op = through(finder.flow, read, steps), finder.flow.maker(read)
    if last is None and op is not None and slots.count == 1 and (name := sort_name(op)) in ROWS:
        source, weight = (finder.tape.calls[op.index].args[at] for at in ROWS[name][:2])
        if isinstance(source, Ref) and isinstance(weight, Ref) and weight.id not in finder.flow.activations:
            matrix = stored(finder.tape, weight.id)
            return (source.id, matrix if ROWS[name][2] else matrix.T) if matrix.ndim == 2 else None
    if last is None:
        return None
    shape = torch.Size(finder.flow.shape(last.made))
    picks = last.picks(finder.flow, shape, slots, lambda some, given: next(iter(
        execute(finder.tape, some, given=given).values()
    )))  # fmt: skip
    if picks is None or picks.order is None:
        return None
    natural = torch.arange(picks.order.numel()).view_as(picks.order)
    return (last.source, picks.weights.flatten(0, 1)) if torch.equal(picks.order, natural) else None


def _out(finder: _Finder, made: int) -> int | None:
    """What an attention adds to the stream: the last value that is made of it alone."""
    value, contracted = made, False
    while True:
        users = finder.flow.users(value)
        if len(users) != 1 or len(users[0].outputs) != 1:
            return value if contracted else None
        if len(finder.moving(users[0])) != 1:
            return value if contracted else None
        contracted = contracted or sort_name(users[0]) in CONTRACTION
        value = users[0].outputs[0]


def _factors(finder: _Finder, levels: _Levels, source: int, level: int) -> Float[Tensor, " length"] | None:
    """By what each position is multiplied between a level and what is read of it, relative to the first one."""
    if source == level:
        return torch.ones(levels.length)
    width = finder.flow.shape(source)[-1]
    probe = torch.randn(width, generator=torch.Generator().manual_seed(0)).expand(levels.length, width)
    found = levels.rows(finder.pull(source, level, probe[None]))[0]
    factors = found @ found[0] / found[0].square().sum()
    fits = (found - factors[:, None] * found[0]).norm() <= _NEAR * found.norm()
    return factors if bool(fits) and bool((factors != 0).all()) else None


def _packed(finder: _Finder, levels: _Levels, source: int, level: int, vectors: Tensor) -> Float[Tensor, "count d"]:
    """Readers of a source as readers of a level, as many at once as there are positions; the first at position 0."""
    count = len(vectors)
    full = torch.cat([vectors, vectors.new_zeros(-count % levels.length, vectors.shape[1])])
    return levels.rows(finder.pull(source, level, full.view(-1, levels.length, vectors.shape[1]))).flatten(0, 1)[:count]


def _writers(finder: _Finder, levels: _Levels) -> Ends | None:
    """Everything that writes, as vectors of the stream; None unless what dictionaries write
    is added as it is."""
    model, random = finder.model, torch.Generator().manual_seed(1)
    plain = [spot for spot in model.written if spot.value in levels.seen]
    if any(spot.count != levels.length or spot.width != levels.width for spot in plain):
        return None
    probes = {spot.value: torch.randn(spot.shape, generator=random) for spot in plain}
    zeros = {spot.value: torch.zeros(spot.shape) for spot in (*model.parts, *model.sources)}
    nothing = {value: torch.zeros_like(probe) for value, probe in probes.items()}
    base, made = finder.run(levels.values, nothing | zeros), finder.run(levels.values, probes | zeros)
    for number, level in enumerate(levels.values):
        wanted = sum(
            (spot.rows(probes[spot.value]) for spot in plain if levels.seen[spot.value] <= number), torch.zeros(())
        )
        if bool((levels.rows(made[level] - base[level]) - wanted).norm() > _NEAR * (1 + wanted.norm())):
            return None
    vectors, rows, numbers, columns = [], [], [], []
    for spot, where, wrote, column in entries(model):
        if spot.value not in levels.seen:
            continue
        number = levels.seen[spot.value]
        if spot.value in zeros:
            if spot.count != levels.length:
                return None
            one = finder.run([levels.values[number]], nothing | zeros | {spot.value: model.held[spot.value]})
            wrote = levels.rows(one[levels.values[number]] - base[levels.values[number]])
        vectors.append(wrote)
        rows.append(where)
        numbers.append(torch.full_like(where, number))
        columns.append(column)
    joined = [torch.cat(one) for one in (vectors, rows, numbers, columns)]
    return Ends(joined[0], joined[1], joined[2], joined[3], True, len(levels.values))


def _targets(finder: _Finder, levels: _Levels, groups: Sequence[Targets], ends: Targets, place: dict[int, int]) -> Ends:
    """All targets as readers of the stream."""
    vectors, rows, numbers, columns = [], [], [], []
    for group in groups:
        for spot, where, read in group.reads:
            level = place[spot.value]
            vectors.append(_by_position(finder, levels, spot, levels.values[level], where, read))
            rows.append(where)
            numbers.append(torch.full_like(where, level))
            columns.append(group.numbers)
    for spot, where, read in ends.reads:
        level = place[spot.value]
        found = levels.rows(_of_output(finder, levels, spot, levels.values[level], where, read))
        for row in found.any(-1).any(0).nonzero()[:, 0].tolist():
            vectors.append(found[:, row])
            rows.append(torch.full_like(ends.numbers, row))
            numbers.append(torch.full_like(ends.numbers, level))
            columns.append(ends.numbers)
    joined = [torch.cat(one) for one in (vectors, rows, numbers, columns)]
    return Ends(joined[0], joined[1], joined[2], joined[3], False, len(levels.values))


def _by_position(
    finder: _Finder, levels: _Levels, spot: Spot, level: int, where: Tensor, read: Tensor
) -> Float[Tensor, "count d"]:
    """Readers at one position each, as readers of a level, one of every position at a time."""
    order = where.argsort(stable=True)
    sorted_rows = where[order]
    counts = torch.bincount(sorted_rows, minlength=spot.count)
    turn = torch.arange(len(where)) - (counts.cumsum(0) - counts)[sorted_rows]
    table = read.new_zeros(int(counts.max()), spot.count, spot.width)
    table[turn, sorted_rows] = read[order]
    found = levels.rows(finder.pull(spot.value, level, spot.back(table)))[turn, sorted_rows]
    return torch.empty_like(found).index_copy_(0, order, found)


def _of_output(
    finder: _Finder, levels: _Levels, spot: Spot, level: int, where: Tensor, read: Tensor
) -> Float[Tensor, "count ..."]:
    """Readers of the output as readers of a level; through the rows of the last matrix that they read, if they can."""
    steps = finder.plan([spot.value], {*finder.stops, level})
    found = _matrix(finder, spot.value, steps, Slots(len(spot.shape) - 1, 1))
    if found is None or spot.count != levels.length:
        return finder.pull(spot.value, level, spot.spread(where, read))
    source, matrix = found
    given = read.new_zeros(len(where), levels.length, matrix.shape[1])
    given[torch.arange(len(where)), where] = read @ matrix
    return finder.pull(source, level, given)
