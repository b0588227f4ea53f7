"""Activation patching at many places: each site at each index of an axis, one patch a world.

The worlds are carried together by a wavefront: rows of one batch, joining where they are made, over the positions that
they can reach. A patch that changes nothing is not run. Where a network's calls cannot be made at another batch size,
the worlds of one site run by vmap or one by one. Meng et al. 2022 (arXiv:2202.05262); Heimersheim, Nanda 2024
(arXiv:2404.15255).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..drawing.figures import table_plot
from ..drawing.plot import Plot
from ..errors import DivergenceError, InputError, MetricError, ResourceError, SiteError
from ..run.attached import check_edited
from ..run.interventions import indices, patch, put, take
from ..run.replay import execute, plan
from ..run.sizes import Unfit
from ..run.tape import Tape
from ..run.trace import Found, Trace
from ..run.wavefront import Patch, Wavefront
from ..run.worlds import over
from ..site import Site
from .metric import Metric
from .passes import Pass, passes
from .template import template

MEMORY = 1 << 30  # bytes that the worlds of one pass may take, unless told otherwise
_AGREE = 1e-4  # of the spread between the two runs: how far a world may be from the same patch replayed by itself


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """`effect[i, j]` is the metric, mean over examples, when site i at index j has the source's value.

    It is rescaled so that the run itself is 0 and the source run is 1 (1: this place carries all of it). `metric` is
    the unscaled [.., batch]. `forecast` says what it took. `labels` name the places: tokens that all examples share.
    """

    sites: tuple[str, ...]
    axis: str
    effect: Float[Tensor, "sites places"]
    metric: Float[Tensor, "sites places batch"]
    forecast: Forecast
    labels: tuple[str, ...] = ()

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The places with the largest effects, as sites, largest first."""
        flat = self.effect.flatten()
        order = flat.abs().argsort(descending=True)[:count].tolist()
        places = self.effect.shape[1]
        return [(_at(self.sites[at // places], self.axis, at % places), float(flat[at])) for at in order]

    def __str__(self) -> str:
        head = f"{len(self.sites)} sites x {self.effect.shape[1]} indices of {self.axis}; 0 is the run, 1 the source"
        return "\n".join([head, *(f"  {effect:+.3f}  {site}" for site, effect in self.top())])

    __repr__ = __str__

    def plot(self) -> Plot:
        """A heat map: a row for each site, a column for each place."""
        names = [*self.labels, *[""] * self.effect.shape[1]]
        labels = [f"{place} {names[place]}".strip() for place in range(self.effect.shape[1])]
        measure = "effect; 0 is the run, 1 the source"
        across = "position" if self.axis == "pos" else self.axis
        title = f"Patching by {across}, mean of {self.metric.shape[2]} examples"
        return table_plot(self.sites, labels, self.effect.tolist(), title=title, across=across, measure=measure)

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()


@dataclass(frozen=True)
class Forecast:
    """What a sweep takes: `patches` in all, `run` of them (the others change nothing), in `passes` over the network.

    `forwards` is the computation in units of one forward pass of the run, `bytes` the largest pass. `seconds` is
    extrapolated from two of the smaller passes; None where nobody timed it. `together` is False where each site has
    passes of its own.
    """

    patches: int
    run: int
    passes: int
    forwards: float
    bytes: int
    seconds: float | None = None
    together: bool = True

    def __str__(self) -> str:
        took = "" if self.seconds is None else f", about {self.seconds:.2g} s"
        return (
            f"{self.patches:,} patches, {self.run:,} of them to run, in {self.passes:,} passes: {self.forwards:.1f} "
            f"forward passes of computation{took}, {self.bytes / 2**20:,.0f} MiB"
        )


@dataclass(frozen=True, eq=False)
class _Row:
    """One site of a sweep: its value in both runs, and where its axis lies."""

    found: Found
    value: int
    place: int
    old: Tensor
    new: Tensor

    def patched(self, index: int) -> Tensor:
        """The run's value with the source's at one index, as the tape holds it."""
        made = self.old.clone()
        made.select(self.place, index).copy_(self.new.select(self.place, index))
        return made.flatten(0, 1) if self.found.fold else made


def patch_sweep(
    run: Trace,
    source: Trace,
    metric: Metric,
    sites: str | Sequence[str],
    axis: str = "pos",
    progress: Callable[[str, int, int], None] | None = None,
    memory: int = MEMORY,
) -> Sweep:
    """Patch each site at each index of `axis` from `source` into `run`, one at a time.

    A site with indices on other axes is patched there alone; along the axis "latent", a site stands for the latents of
    the dictionary attached to it.

    `memory` bounds the bytes of one pass. Raises SiteError for a site without that axis, InputError for runs of
    different shapes, MetricError when the metric is the same in both runs, ResourceError when not even one patch fits
    into `memory`.
    """
    task = _Task(run, source, metric, sites, axis, memory)
    with torch.no_grad():
        found = task.baseline.repeat(len(task.rows), task.count, 1)
        for done, some in enumerate(task.passes):
            if progress is not None:
                progress("patching", done, len(task.passes))
            made = task.make(some)
            for (row, index), value in zip(some.worlds, made, strict=True):
                found[row, index] = value
    effect = (found.mean(2) - task.baseline.mean()) / task.spread
    labels = template(run) if axis == "pos" else ()
    return Sweep(task.sites, axis, effect, found, task.forecast(), labels)


def forecast_sweep(
    run: Trace, source: Trace, metric: Metric, sites: str | Sequence[str], axis: str = "pos", memory: int = MEMORY
) -> Forecast:
    """What `patch_sweep` with these arguments will take, from its plan and two timed passes. Raises what it raises."""
    task = _Task(run, source, metric, sites, axis, memory)
    if not task.passes:
        return task.forecast()
    order = sorted(task.passes, key=lambda some: some.cost)
    small = order[0]
    larger = min(order, key=lambda some: abs(some.cost - 4 * small.cost))
    with torch.no_grad():
        task.make(small)
        once, more = _timed(task, small), _timed(task, larger)
    apart = larger.cost - small.cost
    slope = max((more - once) / apart, 0.0) if apart else 0.0
    return task.forecast(sum(once + slope * (some.cost - small.cost) for some in order))


def _timed(task: _Task, some: Pass) -> float:
    start = time.perf_counter()
    task.make(some)
    return time.perf_counter() - start


class _Task:
    """A sweep laid out: its rows, the worlds that must be run, and the passes that run them."""

    def __init__(
        self, run: Trace, source: Trace, metric: Metric, sites: str | Sequence[str], axis: str, memory: int
    ) -> None:
        self.run, self.source, self.metric, self.axis = run, source, metric, axis
        self.sites = (sites,) if isinstance(sites, str) else tuple(sites)
        if not self.sites:
            raise InputError("There is no site to patch; give at least one.")
        with torch.no_grad():
            self.baseline, end = metric(run.logits, run.net), metric(source.logits, source.net)
        self.spread = end.mean() - self.baseline.mean()
        if abs(float(self.spread)) < 1e-12:
            raise MetricError(f"The metric '{metric.name}' is the same in both runs, so there is nothing to restore.")
        named = [Site.parse(site) for site in self.sites]
        found = [run.locate(site.at(latent=":") if axis == "latent" else site) for site in named]
        for where in found:
            check_edited(run, where.address)
        self.outer = {where.address.split("//")[0] for where in found if "//" in where.address}
        self.tape, other = run.tape_with(self.outer), source.tape_with(self.outer)
        self.rows = [self._row(site, where, axis, other, source) for site, where in zip(self.sites, found, strict=True)]
        counts = {row.old.shape[row.place] for row in self.rows}
        if len(counts) != 1:
            raise InputError(f"The sites have axes '{axis}' of different lengths; sweep those of one length together.")
        self.count = counts.pop()
        self.target = run.lift().output.reads[0].value
        worlds = [
            (number, index) for number, row in enumerate(self.rows) for index in _differing(row.old, row.new, row.place)
        ]
        self.front, tried = self._front()
        self.passes = self._passes(worlds, memory)
        if self.front is not None and not tried and not self._agrees():
            self.front = None
            self.passes = self._passes(worlds, memory)

    def _row(self, site: str, where: Found, axis: str, other: Tape, source: Trace) -> _Row:
        if axis not in where.axes:
            has = f"its axes are {', '.join(where.axes)}" if where.axes else "its axes have no names"
            raise SiteError(f"'{site}' has no axis '{axis}'; {has}.")
        value, _ = self.run._find(self.tape, where.address)
        there, _ = source._find(other, where.address)
        old, new = where.unfolded(_value(self.tape, value)), where.unfolded(_value(other, there))
        if old.shape != new.shape:
            raise InputError(f"'{site}' has shape {tuple(new.shape)} in the source run and {tuple(old.shape)} here.")
        wanted = Site.parse(site)
        part = indices(
            Site(wanted.name, tuple(at for at in wanted.index if at[0] != axis)), where.axes, tuple(old.shape)
        )
        new = put(old, part, take(new, part, keep=True))
        return _Row(where, value, where.axes.index(axis), old.detach(), new.detach())

    def _front(self) -> tuple[Wavefront | None, bool]:
        position = self.metric.position if self.run.logits.ndim == 3 else None
        try:
            return self.run.wavefront({row.value for row in self.rows}, self.target, position, self.outer)
        except Unfit:
            return None, True

    def _passes(self, worlds: list[tuple[int, int]], memory: int) -> list[Pass]:
        batch = self.run.logits.shape[0]
        if self.front is None:
            made = []
            for number, row in enumerate(self.rows):
                ops = plan(self.tape, [], [self.target], [row.value]).ops
                size = max(row.old.numel(), self.run.logits.numel()) * 4
                some = max(1, memory // (8 * size))
                mine = [world for world in worlds if world[0] == number]
                for at in range(0, len(mine), some):
                    chunk = mine[at : at + some]
                    cost = len(chunk) * ops / max(len(self.tape.graph.ops), 1)
                    made.append(Pass(tuple(chunk), 0, cost, cost, len(chunk) * size * 8))
            return made
        starts = [self._start(*world) for world in worlds]
        numbers = self.front.numbers(0) * 4
        if numbers > memory:
            raise ResourceError(
                f"One patch takes {numbers:,} bytes and the limit is {memory:,}; use fewer examples at a time or a "
                "higher limit."
            )
        depth = [self.front.share(self.rows[number].value) for number, _ in worlds]
        return passes(worlds, starts, depth, self.front.sizes.length, batch, self.front.numbers, memory)

    def _start(self, number: int, index: int) -> int:
        """The first position at which a world differs from the run."""
        assert self.front is not None
        row = self.rows[number]
        lay = self.front.sizes.lays[row.value]
        if not lay.by_position or lay.pos == lay.batch:
            return 0
        pos = lay.pos + (1 if row.found.fold else 0)
        if pos == row.place:
            return index
        old, new = (side.select(row.place, index) for side in (row.old, row.new))
        return next(iter(_differing(old, new, pos - (row.place < pos))))

    def make(self, some: Pass) -> list[Tensor]:
        """The metric of each world of a pass, [batch] each."""
        patched = [self.rows[number].patched(index) for number, index in some.worlds]
        if self.front is not None:
            values = [self.rows[number].value for number, _ in some.worlds]
            made = self.front.run([Patch(v, new, some.start) for v, new in zip(values, patched, strict=True)])
            read = self.metric.of if self.front.alone else self.metric
            return [read(row, self.run.net) for row in made]
        value = self.rows[some.worlds[0][0]].value
        steps = plan(self.tape, [], [self.target], [value])
        worlds = {value: torch.stack(patched)}
        try:
            rows = over(lambda given: execute(self.tape, steps, given=given)[self.target], worlds)
        except DivergenceError:  # in some world the network takes another path: those run live
            sites = [_at(self.sites[number], self.axis, index) for number, index in some.worlds]
            live = [self.run.replay(patch(site, self.source)).logits for site in sites]
            return [self.metric(row, self.run.net) for row in live]
        return [self.metric(row, self.run.net) for row in rows]

    def _agrees(self) -> bool:
        """Whether the first, the middle and the last world are what the same patches give by themselves."""
        worlds = [(world, some.start) for some in self.passes for world in some.worlds]
        tried = {worlds[at] for at in (0, len(worlds) // 2, len(worlds) - 1)} if worlds else set()
        with torch.no_grad():
            return all(self._same_alone(world, start) for world, start in tried)

    def _same_alone(self, world: tuple[int, int], start: int) -> bool:
        row = self.rows[world[0]]
        steps = plan(self.tape, [], [self.target], [row.value])
        alone = execute(self.tape, steps, given={row.value: row.patched(world[1])})[self.target]
        want = self.metric(alone, self.run.net)
        got = self.make(Pass((world,), start, 0.0, 0.0, 0))[0]
        return float((got - want).abs().max()) <= _AGREE * max(float(self.spread.abs()), float(want.abs().max()))

    def forecast(self, seconds: float | None = None) -> Forecast:
        """What the passes take."""
        return Forecast(
            len(self.rows) * self.count,
            sum(len(some.worlds) for some in self.passes),
            len(self.passes),
            sum(some.forwards for some in self.passes),
            max((some.bytes for some in self.passes), default=0),
            seconds,
            self.front is not None,
        )


def _at(site: str, axis: str, index: int) -> str:
    """A site at one index of an axis."""
    return str(Site.parse(site).at(**{axis: index}))


def _differing(old: Tensor, new: Tensor, place: int) -> list[int]:
    """The indices of an axis at which two values differ."""
    other = [axis for axis in range(old.ndim) if axis != place]
    apart = old != new
    return (apart.any(dim=other) if other else apart).nonzero()[:, 0].tolist()


def _value(tape: Tape, value: int) -> Tensor:
    return execute(tape, plan(tape, [], [value]))[value]
