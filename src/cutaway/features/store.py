"""Activations on disk: rows of one or several sites in a folder, read in order, at random, or shuffled.

A folder holds `manifest.json` and shards (see shards). What is read is a view of the files, so memory does not grow
with their number. Row `i` of every site comes from the same moment of the same example.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import FormatError, InputError
from .card import Place
from .manifest import DTYPES, holds, read_manifest
from .shards import Shard, damage, listed, shard_at

WINDOW = 1 << 30  # bytes among which rows are shuffled


class Example(NamedTuple):
    """What was run: its number in the data set, its first row and how many it has, the shape of their grid (positions,
    or height and width), and its inputs by position or keyword where they were kept."""

    number: int
    row: int
    rows: int
    grid: tuple[int, ...]
    inputs: dict[str, Tensor]


class Activations:
    """Collected rows. Raises FormatError for a folder that is none, is damaged, or comes from a later Cutaway, and
    InputError for one that is not complete."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if not self.manifest["complete"]:
            have = sum(int(path.name[:12]) >= 0 for path in listed(self.folder))
            raise InputError(
                f"'{folder}' is not complete ({have} shards are there); collect again with the same arguments to go on."
            )
        self._dtype = DTYPES[self.manifest["dtype"]]
        self.shards: list[Shard] = []
        for told in self.manifest["shards"]:
            path = self.folder / str(told["file"])
            try:
                shard = shard_at(path)
            except FormatError as error:
                raise FormatError(
                    f"{str(error).rstrip('.')}; collect again with the same arguments to renew it."
                ) from error
            if [shard.first, shard.last] != told["examples"] or not holds(shard, self.manifest):
                raise FormatError(f"'{path}' is not the shard that the manifest tells of; collect into another folder.")
            self.shards.append(shard)
        self._starts = list(itertools.accumulate((shard.rows for shard in self.shards), initial=0))
        self._opened: dict[tuple[int, str], np.ndarray] = {}
        network = self.manifest["network"]["fingerprint"]
        self.places = tuple(
            Place(site["site"], site["width"], network, site["axis"]) for site in self.manifest["sites"]
        )

    def __repr__(self) -> str:
        return f"Activations('{self.folder}', {len(self):,} rows of {', '.join(map(str, self.places))})"

    def __len__(self) -> int:
        return self._starts[-1]

    # ---- rows

    def rows(self, site: str, picked: Int[Tensor, "picked"] | Sequence[int]) -> Float[Tensor, "picked width"]:
        """Some rows of a site in single precision, in the order asked for. Raises InputError for others."""
        self._known(site)
        numbers = np.asarray(picked, dtype=np.int64).reshape(-1)
        if len(numbers) and not (0 <= numbers.min() and numbers.max() < len(self)):
            raise InputError(f"There are rows 0 to {len(self) - 1:,}, and row {numbers.max():,} was asked for.")
        return self._gathered(site, numbers)

    def values(self, site: str) -> Iterator[Float[Tensor, "part width"]]:
        """All rows of a site in order, a shard at a time."""
        self._known(site)
        for place in range(len(self.shards)):
            yield self._number(np.array(self._array(place, f"values/{site}")))

    def batches(self, size: int, *, seed: int = 0, skip: int = 0) -> Iterator[dict[str, Tensor]]:
        """All rows once as {site: [size, width]} in single precision, in an order that `seed` gives.

        Shards are drawn in random order into windows of a gibibyte, and all rows of a window are shuffled together. So
        the order is an even shuffle of everything where the folder is no larger than that; of a larger one, a batch
        comes from a window of shards which lay apart. The last rows that make no full batch are left out; `skip` first
        batches are passed over without being read. Raises InputError for a batch of more rows than there are.
        """
        if size < 1:
            raise InputError(f"A batch of {size} rows is none; give at least 1.")
        if size > len(self):
            raise InputError(f"There are {len(self):,} rows, which make no batch of {size:,}; ask for a smaller one.")
        waiting: list[np.ndarray] = []
        have, passed = 0, skip * size
        for window, rows in self._windows(seed):
            if passed >= rows:
                passed -= rows
                continue
            waiting.append(window()[passed:])
            have += rows - passed
            passed = 0
            if have < size:
                continue
            order = np.concatenate(waiting)
            for start in range(0, have - size + 1, size):
                numbers = order[start : start + size]
                yield {place.site: self._gathered(place.site, numbers) for place in self.places}
            waiting, have = [order[have - have % size :]], have % size

    def sample(self, count: int, *, seed: int = 0) -> dict[str, Tensor]:
        """`count` different rows drawn at random (all, if there are fewer)."""
        drawn = random.Random(seed).sample(range(len(self)), min(count, len(self)))
        numbers = np.array(drawn, dtype=np.int64)
        return {place.site: self._gathered(place.site, numbers) for place in self.places}

    def _windows(self, seed: int) -> Iterator[tuple[Any, int]]:
        """Functions that give the rows of a window in shuffled order, and how many they are."""
        generator = np.random.Generator(np.random.PCG64(seed))
        order = generator.permutation(len(self.shards)).tolist()
        width = sum(place.width for place in self.places) * self._dtype.itemsize
        window: list[int] = []
        for number, place in enumerate(order):
            window.append(place)
            rows = sum(self.shards[one].rows for one in window)
            following = self.shards[order[number + 1]].rows if number + 1 < len(order) else None
            if following is not None and (rows + following) * width <= WINDOW:
                continue
            key = int(generator.integers(1 << 62))
            yield (lambda chosen=tuple(window), key=key: self._shuffled(chosen, key)), rows
            window = []

    def _shuffled(self, chosen: tuple[int, ...], key: int) -> np.ndarray:
        ranges = [np.arange(self._starts[place], self._starts[place + 1]) for place in chosen]
        return np.random.Generator(np.random.PCG64(key)).permutation(np.concatenate(ranges))

    def _gathered(self, site: str, numbers: np.ndarray) -> Tensor:
        """Rows by number, from whichever shards they lie in."""
        name = f"values/{site}"
        if len(self.shards) == 1:
            return self._number(self._array(0, name)[numbers])
        found = torch.empty(len(numbers), self._width(site))
        places = np.searchsorted(self._starts, numbers, side="right") - 1
        for place in np.unique(places).tolist():
            there = np.flatnonzero(places == place)
            found[torch.from_numpy(there)] = self._number(
                self._array(place, name)[numbers[there] - self._starts[place]]
            )
        return found

    def _number(self, raw: np.ndarray) -> Tensor:
        """Stored numbers (a copy of them) as single precision."""
        if self._dtype is torch.bfloat16:
            return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16).float()
        return torch.from_numpy(raw).float()

    def _array(self, place: int, name: str) -> np.ndarray:
        found = self._opened.get((place, name))
        if found is None:
            found = self._opened[place, name] = self.shards[place].read(name)
        return found

    def _known(self, site: str) -> None:
        if site not in (names := [place.site for place in self.places]):
            raise InputError(f"There are no values of '{site}' here; there are those of {', '.join(names)}.")

    def _width(self, site: str) -> int:
        return next(place.width for place in self.places if place.site == site)

    # ---- examples

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each example in the order of collection: its number in the data, its first row, its grid."""
        parts = range(len(self.shards))
        numbers = np.concatenate([self._array(place, "examples/number") for place in parts])
        grids = np.concatenate([self._array(place, "examples/grid") for place in parts])
        counts = grids.prod(1) if grids.shape[1] else np.ones(len(grids), np.int64)
        return numbers, np.concatenate([[0], counts.cumsum()])[:-1], grids

    @property
    def examples(self) -> Examples:
        """What was run, by number in the data set."""
        return Examples(self)

    def where(self, rows: Int[Tensor, "rows"] | Sequence[int]) -> tuple[Tensor, Int[Tensor, "rows axes"]]:
        """The example's number and the position of each row: one along the text, or height and width, in the input's
        count where first positions were left out."""
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        numbers, starts, grids = self._table
        at = np.searchsorted(starts, wanted, side="right") - 1
        left = wanted - starts[at]
        position = np.empty((len(wanted), grids.shape[1]), np.int64)
        for axis in reversed(range(grids.shape[1])):
            size = grids[at, axis]
            position[:, axis] = left % size
            left = left // size
        if (skipped := self.manifest["skip_first"]) and grids.shape[1]:
            position[:, self.manifest["rows"].index("pos")] += skipped
        return torch.from_numpy(numbers[at].copy()), torch.from_numpy(position)

    def verify(self) -> None:
        """Read every byte again. Raises FormatError that names a shard which is not what was written."""
        for shard in self.shards:
            if why := damage(shard):
                raise FormatError(f"{why}; collect again with the same arguments to renew it.")


class Examples:
    """The examples of activations, by number in the data set."""

    def __init__(self, owner: Activations) -> None:
        self._owner = owner
        self._firsts = [shard.first for shard in owner.shards]

    def __len__(self) -> int:
        return len(self._owner._table[0])

    @cached_property
    def _places(self) -> dict[int, int]:
        return {int(number): place for place, number in enumerate(self._owner._table[0])}

    def __getitem__(self, number: int) -> Example:
        if number not in self._places:
            raise InputError(f"There is no example {number} here; there are {len(self):,}.")
        owner, place = self._owner, self._places[number]
        _, starts, grids = owner._table
        shard = bisect.bisect_right(self._firsts, place) - 1
        inner = place - owner.shards[shard].first
        grid = tuple(int(size) for size in grids[place])
        return Example(number, int(starts[place]), int(np.prod(grid)) if grid else 1, grid, self._inputs(shard, inner))

    def _inputs(self, shard: int, inner: int) -> dict[str, Tensor]:
        found = {}
        for name in self._owner.manifest["inputs"]:
            shapes = self._owner._array(shard, f"inputs/{name}/shape")
            sizes = shapes.prod(1) if shapes.shape[1] else np.ones(len(shapes), np.int64)
            start = int(sizes[:inner].sum())
            flat = self._owner._array(shard, f"inputs/{name}")[start : start + int(sizes[inner])]
            tensor = torch.from_numpy(np.array(flat)).reshape(tuple(int(size) for size in shapes[inner]))
            found[name] = tensor
        return found


def open_activations(folder: str | Path) -> Activations:
    """Collected rows in a folder. Raises FormatError, InputError."""
    return Activations(folder)
