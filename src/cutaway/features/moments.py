"""Rows at sites: a network run on a batch no further than the sites need, each value as [examples, ..., numbers].

Where a site lies is found once, on a few examples. A batch that makes the same calls has it at the same place, however
many examples it holds and however long they are; one that goes another way is recorded whole and looked at by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CutawayError, InputError, SiteError
from ..graph import Graph
from ..run.interventions import indices, take
from ..run.network import Network
from ..run.structure import swap, tensors
from ..run.trace import Trace
from ..run.until import Begun, run_until
from ..run.untouched import Snapshot
from ..site import Site

FEW = 3  # examples that a site is looked for on
_MOST_REFERENCES = 16
_STEPS = "@*"  # in a site's name: all steps of a recurrence, along an axis of their own
_VECTORS = ("channel", "neuron")  # axes along which vectors lie, if there is one; else the last; the others are of rows


class Spot(NamedTuple):
    """Where a site's value lies in a run: its raw address ("" where only a whole recording gives it), axes and fold."""

    site: Site
    address: str
    axes: tuple[str, ...]
    fold: int


class Value(NamedTuple):
    """A site's value on a batch, [examples, *grid, width]: the names of the grid's axes, and that of the vectors' where
    it is not the last one of the value in the network. Vectors of several heads lie side by side."""

    rows: Tensor
    grid: tuple[str, ...]
    axis: str


@dataclass(frozen=True)
class _Reference:
    """A whole run that others are compared with: its graph, where the sites lie, and the shapes of its inputs."""

    graph: Graph
    spots: tuple[Spot, ...]
    form: tuple[tuple[int, ...], ...]

    def serves(self, form: tuple[tuple[int, ...], ...]) -> bool:
        """Whether axes found here are those of a run of another form: a fold may be a number of positions."""
        return self.form == form or not any(spot.fold for spot in self.spots)


class Sites:
    """Some sites of a network, to be read batch by batch. `whole` counts the batches that had to run to the end."""

    def __init__(self, net: Network, sites: Sequence[str]) -> None:
        if not sites:
            raise InputError("No site is given; name at least one, such as 'resid.3'.")
        if twice := [site for site in sites if list(sites).count(site) > 1]:
            raise InputError(f"The site '{twice[0]}' is given twice; name each once.")
        self.net = net
        self.sites = [Site.parse(site) for site in sites]
        self.names = list(sites)
        self.whole = 0
        self._references: list[_Reference] = []
        self._snapshot = Snapshot(net.module)
        self._device = next((tensor.device for tensor in net.module.parameters()), torch.device("cpu"))

    def values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int) -> dict[str, Value]:
        """The values of a batch of `count` examples by site; inputs are brought to the network's device.

        Raises SiteError for a site that is not there, InputError for one whose rows belong to no example.
        """
        args, kwargs = swap((args, dict(kwargs)), Tensor, lambda tensor: tensor.to(self._device))
        form = tuple(tuple(tensor.shape[1:]) for tensor in tensors((args, kwargs)))
        if not self._references:
            self._refer(args, kwargs, count, form)
        for attempt in range(2):
            if not all(spot.address for spot in self._references[-1].spots):
                break
            found = self._begun(args, kwargs, form)
            if found is not None:
                spots, begun = found
                whole = [begun.values[spot.address] for spot in spots]
                return {
                    name: _rows(spot, value, count) for name, spot, value in zip(self.names, spots, whole, strict=True)
                }
            if not attempt and count > FEW:
                self._refer(args, kwargs, count, form)
        self.whole += 1
        trace = self.net.record(*args, **kwargs)
        return {name: _recorded(trace, site, count) for name, site in zip(self.names, self.sites, strict=True)}

    def _begun(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], form: tuple[tuple[int, ...], ...]
    ) -> tuple[tuple[Spot, ...], Begun] | None:
        """A run up to the sites and where they lie in it, if it goes like one of the references."""
        begun: Begun | None = None
        asked: list[str] = []
        for reference in reversed(self._references):
            addresses = [spot.address for spot in reference.spots]
            if not reference.serves(form):
                continue
            if begun is None or asked != addresses:
                if not self._snapshot.same():
                    self._snapshot = Snapshot(self.net.module)
                begun, asked = run_until(self.net, self._snapshot, addresses, *args, **kwargs), addresses
            if len(begun.values) == len(set(addresses)) and begun.follows(reference.graph):
                return reference.spots, begun
        return None

    def _refer(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int, form: tuple[tuple[int, ...], ...]
    ) -> None:
        """Find the sites on a few examples of a batch.

        An axis of examples has as many places as there are examples, for two numbers of them: a length that is that of
        the batch by chance is not taken for it.
        """

        def some(number: int) -> Trace:
            def few(tensor: Tensor) -> Tensor:
                return tensor[torch.arange(number) % count] if tensor.ndim and len(tensor) == count else tensor

            return self.net.record(*swap(args, Tensor, few), **swap(dict(kwargs), Tensor, few))

        found: dict[int, Trace] = {}
        with torch.random.fork_rng(devices=[]):
            for number in (FEW, FEW - 1):
                with suppress(CutawayError):  # perhaps it takes batches of some size alone
                    found[number] = some(number)
            trace = next(iter(found.values())) if found else self.net.record(*args, **kwargs)
        spots = tuple(_spot(trace, site) for site in self.sites)
        for number, other in found.items():
            for site in self.sites:
                with suppress(SiteError):  # with fewer examples it went another way
                    _recorded(other, site, number)
        self._references = [*self._references[1 - _MOST_REFERENCES :], _Reference(trace.graph, spots, form)]


def _spot(trace: Trace, site: Site) -> Spot:
    if _STEPS in site.name:
        return Spot(site, "", (), 0)
    found = trace.locate(site)
    if found.derive is not None or "//" in found.address:
        return Spot(site, "", found.axes, found.fold)
    value, _ = trace.graph.find(found.address)
    address = trace.graph.site(value)
    made = trace.graph.values[value].op >= 0 and "/alias." not in address
    fold, axes = trace.layout(found)
    return Spot(site, address if made else "", axes, fold)


def _recorded(trace: Trace, site: Site, count: int) -> Value:
    """A site's rows out of a whole recording."""
    if _STEPS not in site.name:
        spot = _spot(trace, site)
        found = trace.locate(site)
        value = trace._whole(found).detach()
        return _rows(Spot(site, "", spot.axes, spot.fold), value, count)
    pattern = re.compile(re.escape(site.name).replace(re.escape(_STEPS), r"(?:@(\d+))?"))
    steps = {name: int(match[1] or 0) for name in trace.lift().sites if (match := pattern.fullmatch(name))}
    if not steps:
        raise SiteError(f"'{site.name}' matches no step of a recurrence; `@*` stands for '', '@1', '@2' and so on.")
    each = [_recorded(trace, Site(name, site.index), count) for name in sorted(steps, key=lambda name: steps[name])]
    return Value(torch.stack([one.rows for one in each], 1), ("pos", *each[0].grid), each[0].axis)


def _rows(spot: Spot, value: Tensor, count: int) -> Value:
    """A value with its examples first and its vectors last."""
    if spot.fold:
        value = value.unflatten(0, (-1, spot.fold))
    axes = spot.axes if len(spot.axes) == value.ndim else tuple(map(str, range(value.ndim)))
    picked = indices(spot.site, axes, tuple(value.shape))
    value = take(value, picked)
    axes = tuple(axis for axis, index in zip(axes, picked, strict=True) if not isinstance(index, int))
    batch = axes.index("batch") if "batch" in axes else 0
    if value.ndim < 2 or value.shape[batch] != count or not value.numel():
        raise InputError(
            f"'{spot.site}' has shape {tuple(value.shape)} for {count} examples, so its rows belong to no example; "
            "choose a site with an axis of examples and one of numbers."
        )
    if not value.is_floating_point():
        raise InputError(f"'{spot.site}' holds {str(value.dtype)[6:]} and no real numbers; choose another site.")
    usual = [axes.index(axis) for axis in _VECTORS if axis in axes]
    left = [place for place in range(value.ndim) if place != batch and axes[place] != "pos"]
    if not left:
        raise InputError(f"'{spot.site}' has one number a position and no vectors; choose another site.")
    vector = usual[0] if usual else left[-1]
    axis = "" if vector == value.ndim - 1 else axes[vector]
    heads = [place for place in left if axes[place] == "head" and place != vector]
    others = [place for place in range(value.ndim) if place not in (batch, vector, *heads)]
    rows = value.permute(batch, *others, *heads, vector).flatten(-1 - len(heads))
    return Value(rows, tuple(axes[place] for place in others), axis)


def of_one_moment(values: Mapping[str, Value], skip_first: int = 0) -> dict[str, Value]:
    """The values without the first positions of each example. Raises InputError where row i of two sites would not be
    of one moment, or no position is left."""
    found = {site: _skipped(site, value, skip_first) if skip_first else value for site, value in values.items()}
    sizes = {site: tuple(value.rows.shape[1:-1]) for site, value in found.items()}
    first, *others = sizes
    if odd := [site for site in others if sizes[site] != sizes[first]]:
        one, two = (" × ".join(map(str, sizes[site])) or "1" for site in (first, odd[0]))
        raise InputError(
            f"'{first}' has {one} rows an example and '{odd[0]}' {two}, and row i of every site must be of one moment; "
            "collect them into folders of their own."
        )
    return found


def _skipped(site: str, value: Value, count: int) -> Value:
    if "pos" not in value.grid:
        raise InputError(f"'{site}' has no positions, so none can be left out; drop skip_first.")
    axis = 1 + value.grid.index("pos")
    length = value.rows.shape[axis]
    if length <= count:
        raise InputError(f"'{site}' has {length} positions, and skip_first={count} leaves none.")
    return value._replace(rows=value.rows.narrow(axis, count, length - count))
