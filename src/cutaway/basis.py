"""Bases: coordinates of a value, so that an edit can be made on heads, neurons or directions alike.

A basis encodes a value into coordinates and decodes coordinates back. What the basis cannot express is kept: an edit in
a basis gives `decode(edit(encode(x))) + (x - decode(encode(x)))`, so editing nothing changes nothing, whatever the
basis. One code path therefore serves ablation of a direction, steering and edits of dictionary latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


class Basis(Protocol):
    """Coordinates of the last axis of a value."""

    def encode(self, value: Any) -> Any:
        """[..., d] to [..., k] coordinates."""

    def decode(self, coordinates: Any) -> Any:
        """[..., k] coordinates to [..., d]."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Coordinates along the rows of `vectors` [k, d], which need not be orthogonal nor complete."""

    vectors: Any

    def encode(self, value: Any) -> Any:
        """Least-squares coordinates, so that projecting out the span is setting them to zero."""
        vectors = self.vectors.to(value.device)
        vectors = vectors if vectors.dtype.itemsize > 2 else vectors.float()  # torch inverts no half precision
        return value @ vectors.pinverse().to(value)

    def decode(self, coordinates: Any) -> Any:
        """The sum of the vectors, weighted by the coordinates."""
        return coordinates @ self.vectors.to(coordinates)


def edit_in(basis: Basis, value: Any, edit: Callable[[Any], Any]) -> Any:
    """Apply `edit` to the coordinates of `value` [..., d] and keep the remainder."""
    coordinates = basis.encode(value)
    return value + basis.decode(edit(coordinates)) - basis.decode(coordinates)
