"""Dictionaries that nobody would call interpretable, to set beside one that was learned: random ones, the principal
components, the neurons themselves.

Random dictionaries come close to trained ones in popular measures, so a figure means something only beside theirs. To
be a fair opponent, a control is given what needs no learning of directions: the mean row, one scale and a bias fitted
by least squares, and for a transcoder the best linear map from what is read to what is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from .card import Card, Place
from .dictionary import Dictionary, concatenated
from .rows import Rows

_SEARCHED = ("omp", "pursuit")  # rules that choose latents one after the other
_MOST_SEARCH = 1e12  # multiplications that a pursuit over the rows may take, about a minute
SAMPLES = 16_384  # rows that a control, or a decomposition, is fitted to


def random_dictionary(
    rows: Rows, latents: int, k: int, seed: int = 0, *, directions: str = "random", samples: int = SAMPLES
) -> Dictionary:
    """Frozen directions of unit length with the TopK rule, scale and bias fitted to rows.

    `directions`: "random" are drawn evenly from the sphere, "data" are rows drawn at random less the mean row, a
    stronger control. Raises InputError for anything else, or where "data" has fewer rows than latents.
    """
    values = rows.sample(samples, seed=seed)
    value = concatenated(values, tuple(values))
    made = frozen(value, value, latents, k, seed, directions)
    return made.but(card=Card(rows.places, rows.places, data=dict(rows.manifest), training={"seed": seed}))


def identity_dictionary(width: int, place: Place | None = None) -> Dictionary:
    """The neurons themselves: as many latents as numbers, each its own."""
    eye = torch.eye(width)
    places = (place,) if place is not None else ()
    return Dictionary("identity", "identity", {"encoder": eye, "decoder": eye}, card=Card(places, places))


def frozen(
    read: Float[Tensor, "rows d_in"],
    written: Float[Tensor, "rows d_out"],
    latents: int,
    k: int,
    seed: int = 0,
    directions: str = "random",
    rule: str = "topk",
) -> Dictionary:
    """Directions that are not learned, with the TopK rule or `rule`, scale and bias fitted, for given rows."""
    generator = torch.Generator().manual_seed(seed)
    center = read.mean(0)
    if directions == "random":
        table = torch.randn(latents, read.shape[1], generator=generator)
    elif directions == "data":
        if len(read) < latents:
            raise InputError(f"There are {len(read):,} rows for {latents:,} directions; give as many rows or more.")
        table = read[torch.randperm(len(read), generator=generator)[:latents]] - center
    else:
        raise InputError(f"There are directions 'random' and 'data', not '{directions}'.")
    table = functional.normalize(table.float(), dim=1)
    return fitted(
        Dictionary(directions, rule, {"encoder": table, "decoder": table, "center": center}, k), written, read
    )


def principal(value: Float[Tensor, "rows d"], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean row, the first principal directions [count, d], and the share of variance that each explains."""
    center = value.mean(0)
    rows = (value - center).double()
    sizes, axes = torch.linalg.eigh(rows.T @ rows / max(len(rows) - 1, 1))
    order = sizes.argsort(descending=True)[:count]
    axes = axes[:, order].T
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return center, (axes * largest.sign()).to(value.dtype), (sizes[order] / sizes.sum()).float()


def sparse_principal(read: Float[Tensor, "rows d_in"], written: Float[Tensor, "rows d_out"], k: int) -> Dictionary:
    """All principal components, of which each row keeps the k largest: the best of PCA at that L0."""
    center, axes, _ = principal(read, read.shape[1])
    weights = {"encoder": axes, "decoder": axes, "center": center}
    return fitted(Dictionary("pca", "abs-topk", weights, min(k, len(axes))), written, read)


def matched(
    dictionary: Dictionary, read: Float[Tensor, "rows d_in"], written: Float[Tensor, "rows d_out"], l0: float, seed: int
) -> dict[str, Dictionary]:
    """Controls of a dictionary's size and L0, fitted to rows that it is not evaluated on. One whose codes are searched
    for row by row stands beside random directions whose codes are, too; another gets "pursuit" as well, rows as
    directions with searched codes, which shows what a better encoder does without learning."""
    k = min(max(round(l0), 1), dictionary.latents)
    rule = "omp" if dictionary.activation in _SEARCHED else "topk"
    found = {"random": frozen(read, written, dictionary.latents, k, seed, "random", rule)}
    if len(read) >= dictionary.latents:
        found["data"] = frozen(read, written, dictionary.latents, k, seed, "data", rule)
    found["PCA"] = sparse_principal(read, written, k)
    if rule == "topk" and len(read) >= dictionary.latents and k * read.numel() * dictionary.latents <= _MOST_SEARCH:
        found["pursuit"] = frozen(read, written, dictionary.latents, k, seed, "data", "omp")
    return {name: control.but(card=dictionary.card) for name, control in found.items()}


def fitted(
    dictionary: Dictionary, written: Float[Tensor, "rows d_out"], read: Float[Tensor, "rows d_in"]
) -> Dictionary:
    """The same directions, mapped to what is written, with one scale and a bias that fit best by least squares."""
    decoder = dictionary.decoder
    if written is not read:
        off = written - written.mean(0)
        near = (read - read.mean(0)).double()
        gram = near.T @ near
        gram.diagonal().add_(1e-6 * float(gram.diagonal().mean()) + 1e-12)
        decoder = decoder @ torch.linalg.solve(gram, near.T @ off.double()).to(decoder.dtype)
    plain = {**dictionary.weights, "decoder": decoder}
    plain.pop("decoder_bias", None)
    made = torch.cat([made for _, made in dictionary.but(weights=plain).reconstructions(read)])
    middle, target = made.mean(0), written.mean(0)
    apart = (made - middle).double()
    scale = float((apart * (written - target)).sum() / apart.square().sum().clamp(min=1e-30))
    weights: Mapping[str, Any] = {**plain, "decoder": decoder * scale, "decoder_bias": target - scale * middle}
    return dictionary.but(weights=weights)
