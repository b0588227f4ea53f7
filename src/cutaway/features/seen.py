"""What an index is made from: rows of some sites in the order of the examples, where each row lies, and the inputs.

`watch` runs a network over inputs and gives rows as they come, so that they need not be kept; collected activations
serve as well, as long as their rows follow one another as examples and positions do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import InputError
from ..run.network import Network
from .card import Place
from .store import Activations

KINDS = ("text", "image", "series", "vector")
_ROWS = 1 << 14  # rows of collected activations that are read at once
_PIECE = 1 << 22  # numbers of a batch of inputs or values that are held at once, about


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows that follow one another: `values` {site: [rows, width]}, `example` [rows] and `position` [rows, axes]
    (no axis for plain vectors, one for text and series, two for images)."""

    values: Mapping[str, Tensor]
    example: Int[Tensor, "rows"]
    position: Int[Tensor, "rows axes"]


class Seen(Protocol):
    """Rows to look at. `examples[i]` is input number i without its batch axis: token ids [pos] or numbers."""

    examples: Sequence[Tensor]
    manifest: dict[str, Any]

    def parts(self, sites: Sequence[str]) -> Iterator[Part]:
        """All rows of some sites, example by example."""


def kind_of(example: Tensor) -> str:
    """What an input is, by its numbers and axes: one of KINDS."""
    if not example.is_floating_point() and example.ndim == 1:
        return "text"
    return {1: "vector", 2: "series", 3: "image"}.get(example.ndim, "vector")


@dataclass(frozen=True, eq=False)
class Watched:
    """A network that is run over examples, of which a batch at a time is held."""

    net: Network
    examples: Sequence[Tensor]
    manifest: dict[str, Any] = field(default_factory=dict)
    batch: int = 64
    places: Mapping[str, Place] = field(default_factory=dict)

    def parts(self, sites: Sequence[str]) -> Iterator[Part]:
        """Rows of some sites; batches are consecutive examples of one shape. Raises what recording raises."""
        start = 0
        while start < len(self.examples):
            shape, stop = self.examples[start].shape, start + 1
            most = max(1, min(self.batch, _PIECE // max(self.examples[start].numel(), 1)))
            while stop < len(self.examples) and stop - start < most and self.examples[stop].shape == shape:
                stop += 1
            inputs = torch.stack([self.examples[place] for place in range(start, stop)])
            yield _part(self.net, inputs, sites, self.places, start)
            start = stop


@dataclass(frozen=True, eq=False)
class Collected:
    """Collected activations, example by example in the order in which they lie on disk."""

    activations: Activations

    @property
    def manifest(self) -> dict[str, Any]:
        """Which data they are."""
        return {"folder": str(self.activations.folder), "hash": self.activations.manifest["hash"]}

    @cached_property
    def _numbers(self) -> Int[Tensor, "rows"]:
        return self.activations.where(range(len(self.activations)))[0]

    @cached_property
    def examples(self) -> list[Tensor]:
        """The inputs of all examples. Raises InputError where they were not kept."""
        found = []
        for number in torch.unique_consecutive(self._numbers).tolist():
            inputs = self.activations.examples[int(number)].inputs
            if not inputs:
                raise InputError("These activations were collected without their inputs, so there is nothing to show.")
            found.append(next(iter(inputs.values())))
        return found

    def parts(self, sites: Sequence[str]) -> Iterator[Part]:
        """All rows of some sites in order. Raises InputError for a site that was not collected."""
        order = torch.unique_consecutive(self._numbers, return_inverse=True)[1]
        for start in range(0, len(self.activations), _ROWS):
            picked = range(start, min(start + _ROWS, len(self.activations)))
            values = {site: self.activations.rows(site, picked) for site in sites}
            yield Part(values, order[start : picked.stop], self.activations.where(picked)[1])


def watch(
    net: Network,
    inputs: Any,
    *,
    batch: int = 64,
    places: Sequence[Place] = (),
    manifest: Mapping[str, Any] | None = None,
) -> Watched:
    """A network over inputs: texts (of any lengths), a tensor [examples, …] or a sequence of tensors.

    `places` say along which axis a site's vectors lie where that is not plain. Raises InputError for no inputs.
    """
    texts = isinstance(inputs, str) or (
        isinstance(inputs, Sequence) and bool(inputs) and all(isinstance(item, str) for item in inputs)
    )
    if texts:
        listed = [inputs] if isinstance(inputs, str) else inputs
        examples: Sequence[Tensor] = [net.encode(text)[0] for text in listed]
    else:
        examples = list(inputs)
    if not examples:
        raise InputError("There is nothing to look at; give at least one input.")
    return Watched(net, examples, dict(manifest or {}), batch, {place.site: place for place in places})


def _part(net: Network, inputs: Tensor, sites: Sequence[str], places: Mapping[str, Place], first: int) -> Part:
    trace = net.record(inputs, keep=list(sites))
    values, found = {}, None
    for site in sites:
        axes = trace.locate(site).axes
        value = trace.value(site).detach()
        wanted = places[site].axis if site in places else ""
        rows, shape = as_rows(value, axes, wanted or ("channel" if "channel" in axes else ""), site)
        if len(shape) and shape[0] != len(inputs):
            raise InputError(
                f"'{site}' has {shape[0]} examples where {len(inputs)} were run; its rows belong to no example alone."
            )
        if found is not None and shape != found:
            raise InputError(f"'{site}' has positions {shape[1:]} and the site before it {found[1:]}; they must agree.")
        values[site], found = rows, shape
    assert found is not None, "a dictionary reads at least one place"
    grid = torch.cartesian_prod(*(torch.arange(size) for size in found)).view(-1, len(found))
    return Part(values, grid[:, 0] + first, grid[:, 1:])


def as_rows(value: Tensor, axes: tuple[str, ...], axis: str, site: str) -> tuple[Tensor, tuple[int, ...]]:
    """(a value as [rows, width] with rows in the order of examples and positions, the sizes of those axes).

    Raises InputError when the value has no axis of that name, or no axis of examples.
    """
    names = list(axes) if len(axes) == value.ndim else [str(place) for place in range(value.ndim)]
    if axis and axis not in names:
        raise InputError(f"'{site}' has no axis '{axis}'; its axes are {', '.join(names)}.")
    along = names.index(axis) if axis else value.ndim - 1
    first = names.index("batch") if "batch" in names else 0
    if value.ndim < 2 or first == along:
        raise InputError(f"'{site}' has shape {tuple(value.shape)}, which is no vector for each example.")
    rest = [place for place in range(value.ndim) if place not in (along, first)]
    moved = value.permute(first, *rest, along)
    return moved.reshape(-1, moved.shape[-1]), tuple(moved.shape[:-1])


def as_value(rows: Tensor, value: Tensor, axes: tuple[str, ...], axis: str) -> Tensor:
    """Rows, as `as_rows` gave those of `value`, laid out as a value again."""
    names = list(axes) if len(axes) == value.ndim else [str(place) for place in range(value.ndim)]
    along = names.index(axis) if axis else value.ndim - 1
    first = names.index("batch") if "batch" in names else 0
    order = [first, *(place for place in range(value.ndim) if place not in (along, first)), along]
    shaped = rows.view([value.shape[place] for place in order])
    return shaped.permute([order.index(place) for place in range(value.ndim)])
