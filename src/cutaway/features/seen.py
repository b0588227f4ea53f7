"""What an index is made from: rows of some sites in the order of the examples, where each row lies, and the inputs.

`watch` runs a network over inputs and gives rows as they come, so that they need not be kept; collected activations
serve as well, as long as their rows follow one another as examples and positions do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import InputError
from ..run.network import Network
from .cutting import digests
from .data import content, data_of
from .moments import Sites
from .store import Activations

KINDS = ("text", "image", "series", "vector")
_ROWS = 1 << 14  # rows of collected activations that are read at once
_ARRAYS = (".npy", ".npz", ".safetensors")
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

    @property
    def examples(self) -> Sequence[Tensor]:
        """The inputs."""

    @property
    def manifest(self) -> dict[str, Any]:
        """Which data they are, JSON-able."""

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

    def parts(self, sites: Sequence[str]) -> Iterator[Part]:
        """Rows of some sites; batches are consecutive examples of one shape, and are run no further than the sites.

        Raises what recording raises, and InputError for sites whose rows are not of the same moments.
        """
        read, start = Sites(self.net, sites), 0
        while start < len(self.examples):
            shape, stop = self.examples[start].shape, start + 1
            most = max(1, min(self.batch, _PIECE // max(self.examples[start].numel(), 1)))
            while stop < len(self.examples) and stop - start < most and self.examples[stop].shape == shape:
                stop += 1
            inputs = torch.stack([self.examples[place] for place in range(start, stop)])
            values = {site: value.rows.detach() for site, value in read.values((inputs,), {}, len(inputs)).items()}
            grids = {tuple(value.shape[:-1]) for value in values.values()}
            if len(grids) > 1:
                raise InputError(
                    f"{' and '.join(sites)} have different positions, so their rows are not of one moment."
                )
            grid = grids.pop()
            places = torch.cartesian_prod(*(torch.arange(size) for size in grid)).view(-1, len(grid))
            flat = {site: value.flatten(0, -2) for site, value in values.items()}
            yield Part(flat, places[:, 0] + start, places[:, 1:])
            start = stop


@dataclass(frozen=True, eq=False)
class Collected:
    """Collected activations, example by example in the order in which they lie on disk; `inputs` by number where they
    were not kept."""

    activations: Activations
    inputs: Mapping[int, Mapping[str, Tensor]] | None = None

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
            inputs = self.activations.examples[number].inputs if self.inputs is None else self.inputs[number]
            if not inputs:
                raise InputError(
                    "These activations were collected without their inputs, so there is nothing to show; give inputs=, "
                    "the data that were collected."
                )
            found.append(next(iter(inputs.values())))
        return found

    def parts(self, sites: Sequence[str]) -> Iterator[Part]:
        """All rows of some sites in order. Raises InputError for a site that was not collected."""
        order = torch.unique_consecutive(self._numbers, return_inverse=True)[1]
        for start in range(0, len(self.activations), _ROWS):
            picked = range(start, min(start + _ROWS, len(self.activations)))
            values = {site: self.activations.rows(site, picked) for site in sites}
            yield Part(values, order[start : picked.stop], self.activations.where(picked)[1])


def inputs_again(activations: Activations, given: Any, net: Network | None = None) -> dict[int, dict[str, Tensor]]:
    """The inputs of all examples by number, from the data that were collected, given again as `collect` takes them.

    They are known by their hash. `net` cuts texts into tokens; arrays need none. Raises InputError for other data.
    """
    manifest, about = activations.manifest, activations.manifest["data"]
    path = isinstance(given, (str, Path)) and "\n" not in str(given)
    arrays = Path(given).suffix in _ARRAYS if path else isinstance(given, (Tensor, np.ndarray, Mapping))
    if net is None and not arrays:
        raise InputError("The network is needed to read these inputs; give it too.")
    streamed, seen = about.get("kind") == "batches", hashlib.sha256()
    found: dict[int, dict[str, Tensor]] = {}
    texts = path and not arrays and about.get("kind") == "arrays"  # a file of texts, where arrays were collected
    context = None if arrays else about.get("context")
    data = None if texts else data_of(cast(Network, net), given, context, None, manifest["limit"])
    if data is not None and (streamed or data.hash == manifest["hash"]):
        for batch in data.batches():
            inputs = batch.inputs()
            seen.update(content(digests(batch)) if streamed else b"")
            found |= {
                number: {name: tensor[row] for name, tensor in inputs.items()}
                for row, number in enumerate(batch.numbers.tolist())
            }
    if not found or (streamed and seen.hexdigest() != manifest["hash"]):
        raise InputError(
            f"'{activations.folder}' was collected from other data than these (their hashes differ); give the data "
            "that were collected, or collect these into a folder of their own."
        )
    return found


def watch(
    net: Network,
    inputs: Any,
    *,
    batch: int = 64,
    manifest: Mapping[str, Any] | None = None,
) -> Watched:
    """A network over inputs: texts (of any lengths), a tensor [examples, …] or a sequence of tensors. Raises
    InputError for no inputs."""
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
    return Watched(net, examples, dict(manifest or {}), batch)
