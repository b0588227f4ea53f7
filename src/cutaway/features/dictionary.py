"""A dictionary: learned coordinates of a value, many more than it has axes, of which few are not zero.

One class serves them all. Sparse autoencoders, transcoders (which read one value and write another), cross-layer
transcoders and crosscoders (several values, concatenated), and linear decompositions (PCA, ICA, k-means ...) differ in
the rule that follows the encoder and in where they read and write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .card import Card
from .codes import PIECE, Codes, rule_named
from .solvers import SOLVERS
from .sparse_codes import searched

_FLOOR = 1e-5  # added to spreads, so that a constant row is no division by zero
# How rows can be normalised one by one: from rows to what is subtracted from each and what each is divided by.
PER_ROW: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "standard": lambda rows: (rows.mean(-1, keepdim=True), rows.std(-1, keepdim=True, unbiased=False) + _FLOOR),
    "length": lambda rows: (rows.new_zeros(1), rows.norm(dim=-1, keepdim=True) / rows.shape[-1] ** 0.5 + _FLOOR),
}


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Coordinates = rule((value − center) · encoderᵀ + encoder_bias); what they stand for = coordinates · decoder +
    decoder_bias. A factor that values were multiplied by in training is folded into these weights.

    `kind` is the method that found it ("topk", "pca" ...), `activation` the rule's name (see codes, solvers), `k` how
    many latents may fire where the rule limits that, `extra` what else it needs, each a tensor [latents]. `per_row`:
    "standard" if each row is centred and brought to unit variance before encoding, "length" if it is brought to unit
    mean square; coordinates are in the value's units again.

    In `weights`: encoder [latents, d_in], decoder [latents, d_out], and where they are not zero encoder_bias [latents],
    center [d_in], decoder_bias [d_out], skip [d_in, d_out] (a skip transcoder's linear path).
    """

    kind: str
    activation: str
    weights: Mapping[str, Tensor]
    k: int = 0
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    per_row: str = ""
    card: Card = field(default_factory=Card)

    def __post_init__(self) -> None:
        if self.activation not in SOLVERS:
            rule_named(self.activation)
        if self.per_row and self.per_row not in PER_ROW:
            raise InputError(f"Rows are normalised one by one in the ways {', '.join(PER_ROW)}, not '{self.per_row}'.")
        encoder, decoder = self.weights["encoder"], self.weights["decoder"]
        if encoder.ndim != 2 or decoder.ndim != 2 or len(encoder) != len(decoder):
            raise InputError(
                f"The encoder has shape {tuple(encoder.shape)} and the decoder {tuple(decoder.shape)}; both are "
                "tables of latents × dimensions."
            )
        width, out_width = self.width, self.out_width
        shapes: dict[str, tuple[int, ...]] = {
            "encoder_bias": (self.latents,), "center": (width,), "decoder_bias": (out_width,),
            "skip": (width, out_width), **dict.fromkeys(self.extra, (self.latents,)),
        }  # fmt: skip
        for name, tensor in {**self.weights, **self.extra}.items():
            if name in shapes and tensor.shape != shapes[name]:
                raise InputError(f"The {name} has shape {tuple(tensor.shape)}; it should be {shapes[name]}.")

    def __repr__(self) -> str:
        where = " -> ".join(dict.fromkeys(" + ".join(map(str, end)) for end in (self.card.reads, self.card.writes)))
        return f"Dictionary({self.kind!r}, {self.latents:,} latents, {where or f'width {self.width}'})"

    @property
    def latents(self) -> int:
        """How many latents it has."""
        return len(self.weights["encoder"])

    @property
    def width(self) -> int:
        """How many numbers a row that it reads has."""
        return self.weights["encoder"].shape[1]

    @property
    def out_width(self) -> int:
        """How many numbers a row that it writes has."""
        return self.weights["decoder"].shape[1]

    @property
    def decoder(self) -> Float[Tensor, "latents d_out"]:
        """What a coordinate of one adds to the value it writes, in that value's units."""
        return self.weights["decoder"]

    def but(self, **changed: Any) -> Dictionary:
        """The same dictionary with some fields changed."""
        return replace(self, **changed)

    def to(self, *where: Any) -> Dictionary:
        """On another device or in another precision."""
        weights = {name: tensor.to(*where) for name, tensor in self.weights.items()}
        return replace(self, weights=weights, extra={name: tensor.to(*where) for name, tensor in self.extra.items()})

    # ---- coordinates

    def pre_activations(self, value: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows latents"]:
        """What the rule is given. Raises InputError for rows of another width."""
        if value.shape[-1] != self.width:
            raise InputError(
                f"This dictionary reads rows of {self.width} numbers and was given rows of {value.shape[-1]}."
            )
        encoder = self.weights["encoder"]
        rows = self._normalised(value.to(encoder.dtype)) - self.weights.get("center", 0.0)
        return rows @ encoder.T + self.weights.get("encoder_bias", 0.0)

    def encode(self, value: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows latents"]:
        """The coordinates of a value, dense; `codes` gives them sparse."""
        pre = self.pre_activations(value)
        if self.activation in SOLVERS:
            found = SOLVERS[self.activation](pre, self.weights["encoder"], self.k, self.extra)
        else:
            found = rule_named(self.activation)(pre, self.k, self.extra)
        found = found * self._spread(value)[1] if self.per_row else found
        return found.to(value.dtype)

    def decode(self, coordinates: Float[Tensor, "*rows latents"]) -> Float[Tensor, "*rows d_out"]:
        """What coordinates stand for, the part that is there without any (`rest`) left out where it depends on the
        value."""
        found = coordinates.to(self.weights["decoder"].dtype) @ self.weights["decoder"]
        return (found + self._constant()).to(coordinates.dtype)

    def rest(self, value: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """What the reconstruction holds besides the decoded coordinates: a skip path, a row's own mean; else zeros."""
        rows = value.to(self.weights["encoder"].dtype)
        found = rows.new_zeros(*rows.shape[:-1], self.out_width)
        if "skip" in self.weights:
            found = found + self._normalised(rows) @ self.weights["skip"]
        if self.per_row:
            mean, spread = self._spread(rows)
            found = found + mean + spread * self.weights.get("decoder_bias", 0.0)
        return found.to(value.dtype)

    def reconstruct(self, value: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """The value that it writes, as it makes it from the value that it reads."""
        return self.decode(self.encode(value)) + self.rest(value)

    def codes(self, value: Float[Tensor, "rows d_in"]) -> Codes:
        """The coordinates by row, of which only those that are not zero are kept; bounded in memory."""
        if (found := self._searched(value)) is not None:
            return found
        step = max(PIECE // max(self.latents, 1), 1)
        pieces = [Codes.of(self.encode(value[start : start + step])) for start in range(0, max(len(value), 1), step)]
        return Codes.joined(pieces)

    def reconstructions(self, value: Float[Tensor, "rows d_in"]) -> Iterator[tuple[Codes, Float[Tensor, "part d_out"]]]:
        """Codes and reconstructions of some rows at a time, by sparse sums."""
        step = max(PIECE // max(self.latents, 1), 1)
        for start in range(0, len(value), step):
            part = value[start : start + step]
            codes = self.codes(part)
            made = codes.decode(self.weights["decoder"]) + self._constant()
            yield codes, made.to(value.dtype) + self.rest(part)

    def _searched(self, value: Float[Tensor, "rows d_in"]) -> Codes | None:
        """The coordinates by row without a full table, or None where that cannot be."""
        encoder = self.weights["encoder"]
        if value.shape[-1] != self.width or value.dtype != encoder.dtype:
            return None
        rows = self._normalised(value)
        rows = rows - self.weights["center"] if "center" in self.weights else rows
        bias = self.weights.get("encoder_bias", encoder.new_zeros(self.latents))
        found = searched(rows, encoder, bias, self.activation, self.k, self.extra)
        if found is None or not self.per_row:
            return found
        return replace(found, values=found.values * self._spread(value)[1].view(-1)[found.rows])

    # ---- normalisation

    def _constant(self) -> Tensor | float:
        return 0.0 if self.per_row else self.weights.get("decoder_bias", 0.0)

    def _spread(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What is subtracted from each row, and what it is divided by."""
        return PER_ROW[self.per_row](rows)

    def _normalised(self, rows: Tensor) -> Tensor:
        if not self.per_row:
            return rows
        mean, spread = self._spread(rows)
        return (rows - mean) / spread


def fvu(value: Float[Tensor, "rows d"], made: Float[Tensor, "rows d"]) -> float:
    """Fraction of variance unexplained: squared error over squared distance from the mean row. Lower is better."""
    error = (value - made).double().square().sum()
    spread = (value - value.mean(0)).double().square().sum()
    return float(error / spread) if float(spread) > 0 else (0.0 if float(error) == 0 else float("inf"))


def concatenated(values: Mapping[str, Tensor], sites: tuple[str, ...]) -> Float[Tensor, "rows d"]:
    """Rows of several sites side by side, in order. Raises InputError for a site that is not there."""
    if missing := [site for site in sites if site not in values]:
        raise InputError(f"There are no values of '{missing[0]}' here; there are those of {', '.join(values)}.")
    found = [values[site] for site in sites]
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)
