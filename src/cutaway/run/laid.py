"""How the vectors of a value lie in it: the last axis of a stream, the channels of an image, heads side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError, SiteError
from ..graph import Value


@dataclass(frozen=True)
class Laid:
    """Where the vectors of a value lie: along `axis`, after the first axis was unfolded into `fold` if that is not 0.

    `axes` names the axes then. With `heads` a vector is those of all heads side by side, which lie along that axis.
    """

    value: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    axes: tuple[str, ...]
    axis: int
    fold: int = 0
    heads: int | None = None

    @property
    def plain(self) -> bool:
        """Whether the value is rows as it is."""
        return not self.fold and self.heads is None and self.axis == len(self.shape) - 1 and self.dtype.itemsize > 2

    def rows(self, value: Tensor) -> Tensor:
        """[..., d]: the vectors on the last axis, in single precision at least."""
        value = value.unflatten(0, (-1, self.fold)) if self.fold else value
        if self.heads is None:
            value = value.movedim(self.axis, -1)
        else:
            value = value.movedim((self.heads, self.axis), (-2, -1)).flatten(-2)
        return value.float() if self.dtype.itemsize <= 2 else value

    def back(self, rows: Tensor) -> Tensor:
        """Rows as the value lies; in their own precision."""
        if self.heads is None:
            value = rows.movedim(-1, self.axis)
        else:
            value = rows.unflatten(-1, (-1, self.shape[self.axis])).movedim((-2, -1), (self.heads, self.axis))
        return value.flatten(0, 1) if self.fold else value

    def put(self, codes: Tensor) -> Tensor:
        """Codes [..., latents] with latents where the vectors lie, or last where heads are side by side."""
        return codes if self.heads is not None else codes.movedim(-1, self.axis)

    def taken(self, latents: Tensor) -> Tensor:
        """`put`, undone."""
        return latents if self.heads is not None else latents.movedim(self.axis, -1)

    @property
    def latent_axes(self) -> tuple[str, ...]:
        """The names of the axes of latents."""
        if self.heads is None:
            return tuple("latent" if place == self.axis else name for place, name in enumerate(self.axes))
        kept = [name for place, name in enumerate(self.axes) if place not in (self.heads, self.axis)]
        return (*kept, "latent")

    @property
    def lead(self) -> tuple[int, ...]:
        """The shape of rows without their last axis."""
        value = torch.empty(self.flat, device="meta")
        return tuple(self.rows(value).shape[:-1])

    @property
    def flat(self) -> tuple[int, ...]:
        """The value's own shape."""
        return (self.shape[0] * self.shape[1], *self.shape[2:]) if self.fold else self.shape


def laid(site: str, value: Value, axes: tuple[str, ...], fold: int, axis: str, width: int) -> Laid:
    """Where the vectors of `width` numbers of a value lie: along `axis`, or along the channels, or last.

    Raises SiteError for an axis that is not there, InputError for vectors of another length.
    """
    shape = (value.shape[0] // fold, fold, *value.shape[1:]) if fold else value.shape
    names = axes if len(axes) == len(shape) else tuple(map(str, range(len(shape))))
    if axis and axis not in names:
        raise SiteError(f"'{site}' has no axis '{axis}'; its axes are {', '.join(names)}.")
    if len(shape) < 2 or not value.dtype.startswith(("float", "bfloat")):
        raise InputError(f"'{site}' is {value.dtype} of shape {value.shape}; a dictionary needs vectors of numbers.")
    usual = "channel" if "channel" in names else "neuron" if "neuron" in names else names[-1]
    place = names.index(axis or usual)
    found = Laid(value.id, shape, getattr(torch, value.dtype), names, place, fold)
    if shape[place] == width:
        return found
    heads = names.index("head") if "head" in names else place
    if heads != place and shape[place] * shape[heads] == width:
        return replace(found, heads=heads)
    raise InputError(
        f"'{site}' has vectors of {shape[place]} numbers (along its axis '{names[place]}') and the dictionary is for "
        f"{width}; it belongs elsewhere."
    )
