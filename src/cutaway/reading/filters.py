"""First-layer filters in human terms: which colours a kernel tells apart, and at which spatial frequency.

A kernel [channels, height, width] is divided into one colour and one pattern (its first singular pair). The pattern's
spectrum says how often it changes over the kernel, and which way; how much of its energy the strongest frequency holds,
against random kernels of the same shape, says how far it stands above noise.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_SIZE = 64  # points of the spectrum along each axis
_GREY = 0.9  # cosine with grey from which a colour is called grey
_FLAT = 0.06  # cycles per pixel below which a pattern is called even
_HUES = {"red–cyan": 0, "orange–blue": 35, "yellow–blue": 60, "green–magenta": 120, "cyan–red": 180, "blue–yellow": 240,
         "magenta–green": 300}  # fmt: skip


def describe(kernels: Float[Tensor, "units channels height width"], count: int, seed: int) -> tuple[list[str], Tensor]:
    """(a line for each kernel, [units] z-scores of their spectral peaks against `count` random kernels)."""
    peak, cycles, angle, colour, share = _measured(kernels)
    drawn = torch.randn(count, *kernels.shape[1:], generator=torch.Generator().manual_seed(seed))
    control = _measured(drawn)[0]
    z = (peak - control.mean()) / control.std().clamp(min=1e-6)
    lines = [
        _line(float(cycles[row]), float(angle[row]), colour[row], float(share[row])) for row in range(len(kernels))
    ]
    return lines, z


def _measured(kernels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Spectral peak, cycles per pixel, orientation, colour and its share, of each kernel."""
    flat = kernels.float().flatten(2)
    colours, sizes, patterns = torch.linalg.svd(flat, full_matrices=False)
    share = sizes[:, 0].square() / sizes.square().sum(1).clamp(min=1e-20)
    colour = colours[:, :, 0]
    colour = colour * torch.where(colour.sum(1, keepdim=True) < 0, -1.0, 1.0)
    pattern = patterns[:, 0].unflatten(1, kernels.shape[2:])
    power = torch.fft.fft2(pattern, s=(_SIZE, _SIZE)).abs().square()
    half = power[:, :, : _SIZE // 2 + 1].flatten(1)
    peak, place = half.max(1)
    width = _SIZE // 2 + 1
    down = (place // width).float()
    down = torch.where(down > _SIZE / 2, down - _SIZE, down) / _SIZE
    across = (place % width).float() / _SIZE
    cycles = torch.hypot(down, across)
    angle = torch.atan2(down, across) * 180 / math.pi
    return peak / half.mean(1).clamp(min=1e-20), cycles, angle, colour, share


def _line(cycles: float, angle: float, colour: Tensor, share: float) -> str:
    said = _colour(colour)
    if cycles < _FLAT:
        return f"{said}, even ({share:.0%} one colour)"
    bars = "vertical" if abs(angle) < 22.5 else "horizontal" if abs(angle) > 67.5 else "slanted"
    return f"{said}, {bars} stripes of {1 / cycles:.1f} pixels ({share:.0%} one colour)"


def _colour(colour: Tensor) -> str:
    if len(colour) != 3:
        return "brightness" if len(colour) == 1 else f"channel {int(colour.abs().argmax())}"
    if float(colour.sum()) / math.sqrt(3) / float(colour.norm().clamp(min=1e-20)) > _GREY:
        return "black–white"
    apart = colour - colour.mean()
    red, green, blue = (float(part) for part in apart)
    hue = math.degrees(math.atan2(math.sqrt(3) / 2 * (green - blue), red - (green + blue) / 2)) % 360
    near = min(_HUES, key=lambda name: min(abs(hue - _HUES[name]), 360 - abs(hue - _HUES[name])))
    return near
