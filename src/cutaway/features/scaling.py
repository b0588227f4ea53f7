"""The units in which dictionaries are trained: values centred and of mean length sqrt(d), and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .architectures import Kind, masks, sizes, spans
from .card import Place
from .objectives import RULES, keep_top_of_batch


@dataclass(frozen=True)
class Units:
    """What is subtracted from values of some places, side by side, and what they are multiplied by."""

    center: Float[Tensor, "d"]
    factor: Float[Tensor, "d"]

    def inside(self, value: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """Values as training sees them."""
        return (value - self.center) * self.factor

    def to(self, device: str) -> Units:
        """On a device."""
        return Units(self.center.to(device), self.factor.to(device))


def units_of(value: Float[Tensor, "rows d"], places: tuple[Place, ...]) -> Units:
    """The units of some rows: each place by itself, so that those with large values count no more than the others.

    Raises InputError where a place has the same value in all rows.
    """
    center, factor = value.double().mean(0), []
    for place, (start, end) in zip(places, spans(places), strict=True):
        length = (value[:, start:end].double() - center[start:end]).norm(dim=1).mean()
        if not float(length) > 1e-12 * float(value[:, start:end].abs().max()):
            raise InputError(
                f"'{place.site}' has the same value in all rows looked at; there is nothing to take apart."
            )
        factor.append((place.width**0.5 / length).expand(place.width))
    return Units(center.float(), torch.cat(factor).float())


def first_weights(
    kind: Kind, rule: str, latents: int, k: float, x: Tensor, y: Tensor,
    places: tuple[tuple[Place, ...], tuple[Place, ...]], generator: torch.Generator,
) -> dict[str, Tensor]:  # fmt: skip
    """Where training starts: the encoder in random directions, the decoder what the best linear map makes of them (the
    same directions, where a dictionary writes what it reads), both of rows of size one."""
    encoder = torch.randn(latents, x.shape[1], generator=generator)
    encoder_mask, decoder_mask = masks(latents, *places) if kind.route == "later" else (1.0, 1.0)
    encoder = encoder * encoder_mask
    encoder = encoder / encoder.norm(dim=1, keepdim=True)
    ridge = None
    if places[0] != places[1]:
        gram = x.T @ x
        ridge = torch.linalg.solve(gram + 1e-4 * gram.diagonal().mean() * torch.eye(len(gram)), x.T @ y)
    decoder = (encoder if ridge is None else encoder @ ridge) * decoder_mask
    if kind.skip:
        decoder = torch.randn(latents, y.shape[1], generator=generator)
    weights = {
        "encoder": encoder, "decoder": decoder / sizes(decoder, spans(places[1])).clamp(min=1e-12)[:, None],
        "encoder_bias": torch.zeros(latents), "decoder_bias": torch.zeros(y.shape[1]),
    }  # fmt: skip
    if kind.skip and ridge is not None:
        weights["skip"] = ridge
    some = slice(0, max((1 << 22) // latents, 256))
    pre = x[some] @ encoder.T
    if not kind.skip:  # the first reconstruction is of the right size
        made = keep_top_of_batch(pre.relu(), k) @ weights["decoder"]
        gain = float(((made * y[some]).sum() / made.square().sum().clamp(min=1e-30)).clamp(1e-3, 1.0))
        weights["encoder"], pre = encoder * gain, pre * gain
    return weights | RULES[rule].own(pre, k)


def folded(weights: Mapping[str, Tensor], reads: Units, writes: Units) -> dict[str, Tensor]:
    """Weights that read and write values as they are; decoder rows keep size one where one place is written.

    Coordinates are in units of the values written: each is multiplied by the same number, so their order stays.
    """
    unit = float((1 / writes.factor).mean())
    encoder = weights["encoder"] * reads.factor * unit
    found = {
        "encoder": encoder, "encoder_bias": weights["encoder_bias"] * unit, "center": reads.center.clone(),
        "decoder": weights["decoder"] / writes.factor / unit,
        "decoder_bias": writes.center + weights["decoder_bias"] / writes.factor,
    }  # fmt: skip
    if "skip" in weights:
        found["skip"] = reads.factor[:, None] * weights["skip"] / writes.factor
        found["decoder_bias"] = found["decoder_bias"] - reads.center @ found["skip"]
    if "log_threshold" in weights:
        found["threshold"] = weights["log_threshold"].exp() * unit
    if "log_scale" in weights:
        scale = weights["log_scale"].exp()
        found["scale"] = scale
        found["magnitude_bias"] = (weights["magnitude"] - weights["encoder_bias"] * scale) * unit
    return found
