"""Rows to make dictionaries from: vectors of one or several sites, given batch by batch in a seeded order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError
from .card import Place


class Rows(Protocol):
    """Many rows. Row `i` of every place comes from the same moment of the same example.

    `manifest` says what they are, JSON-able: at least `hash` of the data, and of collected ones what `collect` writes.
    """

    places: tuple[Place, ...]
    manifest: dict[str, Any]

    def __len__(self) -> int:
        """How many rows there are."""

    def batches(self, size: int, *, seed: int = 0, skip: int = 0) -> Iterator[dict[str, Tensor]]:
        """All rows once, in the order that `seed` gives, as {site: [size, width]} in single precision.

        The last rows that make no full batch are left out; with `skip`, that many first batches are. Raises
        InputError for a batch of more rows than there are.
        """

    def sample(self, count: int, *, seed: int = 0) -> dict[str, Tensor]:
        """`count` different rows drawn at random (all, if there are fewer)."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Rows that are at hand as tensors {site: [rows, width]}.

    Raises InputError when the sites have different numbers of rows, or a number is not finite.
    """

    values: Mapping[str, Tensor]
    manifest: dict[str, Any] = field(default_factory=dict)
    network: str = ""

    def __post_init__(self) -> None:
        if not self.values:
            raise InputError("There are no rows; give tensors by site, as in InMemory({'resid.3': values}).")
        counts = {site: len(value) for site, value in self.values.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"'{site}' {count:,}" for site, count in counts.items())
            raise InputError(f"Row i of every site must be of one moment, and the sites have different counts: {told}.")
        for site, value in self.values.items():
            if value.ndim != 2 or not value.is_floating_point():
                raise InputError(f"'{site}' is no table of rows × numbers: its shape is {tuple(value.shape)}.")
            if not bool(value.isfinite().all()):
                row = int((~value.isfinite()).any(1).nonzero()[0, 0])
                raise InputError(f"Row {row:,} of '{site}' is not finite; find out why, or leave it out.")

    @property
    def places(self) -> tuple[Place, ...]:
        """The sites and their widths."""
        return tuple(Place(site, value.shape[1], self.network) for site, value in self.values.items())

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def batches(self, size: int, *, seed: int = 0, skip: int = 0) -> Iterator[dict[str, Tensor]]:
        """All rows once in a seeded order. Raises InputError for a batch of more rows than there are, or of none."""
        if size < 1:
            raise InputError(f"A batch of {size} rows is none; give at least 1.")
        if size > len(self):
            raise InputError(f"There are {len(self):,} rows, which make no batch of {size:,}; ask for a smaller one.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for start in range(skip * size, len(self) - size + 1, size):
            picked = order[start : start + size]
            yield {site: value[picked].float() for site, value in self.values.items()}

    def sample(self, count: int, *, seed: int = 0) -> dict[str, Tensor]:
        """Rows drawn at random."""
        picked = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        return {site: value[picked].float() for site, value in self.values.items()}

    def rows(self, site: str, picked: Tensor) -> Tensor:
        """Rows of a site by number, in single precision."""
        return self.values[site][picked].float()
