"""Saliency: which places of a network's inputs a metric depends on, example by example.

A map is taken where activations begin: at a floating point input as it is, at the embedding of tokens otherwise, where
the numbers of a token are brought together into one. Many variants of the inputs are worlds of one batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, MetricError
from ..run.trace import Trace
from .inputs import Inputs
from .metric import Metric, as_metric
from .options import check_options

Maps = dict[str, Tensor]
_LEAST = {"samples": 1, "steps": 1, "noise": 0.0, "within": 0.0}


class Spot(NamedTuple):
    """One place of a map: its input, index there (without the example), value, and how a person says where it is."""

    input: str
    place: tuple[int, ...]
    value: float
    text: str


@dataclass(frozen=True, eq=False)
class Saliency:
    """How much the metric depends on each place. `maps` by input: [batch, *input shape], or [batch, pos] for tokens.

    Positive: the place speaks for the metric (of gradients of tokens only the length is kept). `facts` say how the maps
    were made and, where the method claims that they add up to the metric's difference, how far they are from it.
    """

    method: str
    maps: Maps
    facts: dict[str, Any]
    tokens: dict[str, list[list[str]]]

    @property
    def values(self) -> Float[Tensor, "batch *places"]:
        """The map of the only input. Raises InputError when there are several."""
        if len(self.maps) != 1:
            raise InputError(f"There are several maps; choose one of .maps: {', '.join(self.maps)}.")
        return next(iter(self.maps.values()))

    def top(self, count: int = 10, example: int = 0) -> list[Spot]:
        """The places of an example with the largest values, by size."""
        found = []
        for name, values in self.maps.items():
            flat = values[example].flatten()
            for place in flat.abs().topk(min(count, len(flat))).indices.tolist():
                index = tuple(map(int, np.unravel_index(place, values.shape[1:]))) if values.ndim > 1 else ()
                found.append(Spot(name, index, float(flat[place]), self._words(name, example, index)))
        return sorted(found, key=lambda spot: -abs(spot.value))[:count]

    def _words(self, name: str, example: int, index: tuple[int, ...]) -> str:
        if name in self.tokens and len(index) == 1:
            return f"{self.tokens[name][example][index[0]]!r} at {index[0]}"
        words = {1: ("feature",), 2: ("row", "column"), 3: ("channel", "row", "column")}.get(len(index), ())
        said = " ".join(f"{word} {place}" for word, place in zip(words, index, strict=False)) or f"{list(index)}"
        return said if len(self.maps) == 1 else f"{name}: {said}"

    def __str__(self) -> str:
        rows = [f"{spot.value:+10.4f}  {spot.text}" for spot in self.top()]
        return "\n".join([f"{self.method}, example 0", *rows])


def saliency(
    trace: Trace, metric: Metric | Callable[..., Any], method: str = "integrated-gradients", **options: Any
) -> Saliency:
    """Which places of the inputs the metric depends on, by one of METHODS; `options` are that method's own.

    Raises InputError for an unknown method or option and for a run with interventions, MetricError for a metric that
    does not depend on the inputs.
    """
    if method not in METHODS:
        raise InputError(f"There is no saliency method '{method}'; there are {', '.join(METHODS)}.")
    made = METHODS[method]
    known = [name for name in inspect.signature(made).parameters if name != "inputs"]
    if odd := [name for name in options if name not in known]:
        raise InputError(f"'{method}' takes no option '{odd[0]}'; it takes {', '.join(known) or 'none'}.")
    check_options(made, options, _LEAST)
    inputs = Inputs(trace, as_metric(metric))
    maps, facts = made(inputs, **options)
    if not any(bool(found.any()) for found in maps.values()):
        raise MetricError(f"The metric '{inputs.metric.name}' does not depend on any place of the inputs.")
    given = {name: inspect.signature(made).parameters[name].default for name in known} | options
    shown = {name: value for name, value in given.items() if isinstance(value, (int, float, str, tuple))}
    return Saliency(method, maps, {**shown, "metric": inputs.metric.facts, **facts}, inputs.tokens())


def gradient(inputs: Inputs, through: bool = False) -> tuple[Maps, dict[str, Any]]:
    """The gradient of the metric; of a token, its length. Simonyan, Vedaldi, Zisserman 2013 (arXiv:1312.6034).

    `through`: also through `detach` and `no_grad` of the network, here and below.
    """
    return _lengths(inputs, _slopes(inputs, inputs.rows(), through)), {}


def gradient_times_input(inputs: Inputs, through: bool = False) -> tuple[Maps, dict[str, Any]]:
    """Gradient times input. Shrikumar, Greenside, Shcherbina, Kundaje 2016 (arXiv:1605.01713)."""
    slopes = _slopes(inputs, inputs.rows(), through)
    return inputs.together({name: slopes[name] * value for name, value in inputs.values.items()}), {}


def smooth_grad(
    inputs: Inputs, samples: int = 25, noise: float = 0.15, seed: int = 0, through: bool = False
) -> tuple[Maps, dict[str, Any]]:
    """The mean gradient around the input; `noise` is the spread as a share of each example's range.

    Smilkov, Thorat, Kim, Viégas, Wattenberg 2017 (arXiv:1706.03825).
    """
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    for name, value in inputs.values.items():
        flat = value.reshape(len(value), -1)
        spread = noise * (flat.amax(1) - flat.amin(1)).view(-1, *[1] * (value.ndim - 1))
        drawn = torch.randn(samples, *value.shape, generator=generator)
        rows[name] = value + drawn.to(value) * spread
    return _lengths(inputs, _slopes(inputs, rows, through)), {}


def integrated_gradients(
    inputs: Inputs, baseline: Any = "", steps: int = 50, within: float = 0.05
) -> tuple[Maps, dict[str, Any]]:
    """The gradient along the line from a baseline, times the way: adds up to the metric's difference.

    By Gauss-Legendre quadrature with `steps` points, doubled up to three times until the error is `within` a share of
    the largest difference. Where the network cuts gradients off (`detach`, `no_grad`), those that come closer are kept:
    its own (a straight-through estimate) or the ones through the cut. Sundararajan, Taly, Yan 2017 (arXiv:1703.01365).
    """
    start, sides = inputs.baseline(baseline), {"the network's own": inputs}
    if through := inputs.uncut():
        sides = (sides if inputs.differentiable() else {}) | {"through detach and no_grad": through}
    whole = inputs.measure(inputs.rows())[0] - inputs.measure({name: row[None] for name, row in start.items()})[0]
    mixed = (through or inputs).mixed()
    tried = []
    for count in (steps, 2 * steps, 4 * steps, 8 * steps):
        for said, side in sides.items():
            maps = inputs.together(_along(side, start, count))
            added = torch.stack([part.reshape(len(part), -1).sum(1) for part in maps.values()]).sum(0)
            missed = (added - whole).mean() if mixed else added - whole
            error = float(missed.abs().max()) / (float(whole.abs().max()) or 1.0)
            tried.append((error, float(added.mean()), count, said, maps))
        if min(error for error, *_ in tried) <= within:
            break
    error, total, count, said, maps = min(tried, key=lambda one: one[0])
    over = "all examples together, for they depend on each other" if mixed else "each example"
    completeness = {"sum": total, "difference": float(whole.mean()), "error": error, "of": over}
    return maps, {"baseline": _say(baseline), "steps": count, "gradients": said, "completeness": completeness}


def _along(inputs: Inputs, start: Maps, steps: int) -> Maps:
    """The integral of the gradient from a start to the inputs."""
    places, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(steps))
    ways = {name: value - start[name] for name, value in inputs.values.items()}
    shares = {name: ((places + 1) / 2).to(way).view(-1, *[1] * way.ndim) for name, way in ways.items()}
    slopes = inputs.gradients({name: start[name] + shares[name] * way for name, way in ways.items()})
    return {name: torch.tensordot((weights / 2).to(way), slopes[name], 1) * way for name, way in ways.items()}


def occlusion(
    inputs: Inputs, window: int | tuple[int, ...] | None = None, stride: int | tuple[int, ...] | None = None,
    baseline: Any = "",
) -> tuple[Maps, dict[str, Any]]:
    """What the metric loses when a window of places is replaced, averaged over the windows that cover a place.

    A window covers all channels. It is one place wide, or an eighth of an image's side, and moves by half of that.
    Zeiler, Fergus 2014 (arXiv:1311.2901).
    """  # fmt: skip
    start, maps, before = inputs.baseline(baseline), {}, inputs.measure(inputs.rows())[0]
    for name, value in inputs.values.items():
        axes = inputs.places(name)
        wide = _sizes(window, [max(1, value.shape[axis] // 8) if len(axes) > 1 else 1 for axis in axes], "window")
        pace = _sizes(stride, [max(1, size // 2) for size in wide], "stride")
        masks = _windows(value, axes, wide, pace)
        total, covered = torch.zeros_like(value), masks.sum(0)
        for mask in masks.split(inputs.fitting):
            rows = {other: rest.expand(len(mask), *rest.shape) for other, rest in inputs.values.items()}
            rows[name] = torch.where(mask, start[name], value)
            lost = before - inputs.measure(rows)
            total = total + torch.einsum("wb,w...->b...", lost.to(value), mask[:, 0].to(value))
        mean = total / covered.clamp(min=1)
        maps[name] = mean.select(inputs.unit(name), 0) if inputs.is_tokens(name) else mean
    return maps, {"baseline": _say(baseline)}


def grad_cam(inputs: Inputs, site: str = "") -> tuple[Maps, dict[str, Any]]:
    """Channels of a convolution, weighted by their mean gradient, where they speak for the metric: [batch, *places].

    `site`: any image-like value, the last convolution's channels by default; the map is stretched to the input's size.
    Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra 2017 (arXiv:1610.02391).
    """
    site = site or inputs.last_convolution()
    value, slope = inputs.gradient_at(site)
    if value.ndim < 3:
        raise InputError(f"'{site}' has shape {tuple(value.shape)}; GradCAM needs channels with places.")
    axis = inputs.channel_axis(site)
    value, slope = value.movedim(axis, 1), slope.movedim(axis, 1)
    weights = slope.mean(tuple(range(2, slope.ndim)), keepdim=True)
    coarse = (weights * value).sum(1, keepdim=True).relu()
    maps = {}
    for name, whole in inputs.values.items():
        size = [whole.shape[place] for place in inputs.places(name)]
        if len(size) != coarse.ndim - 2:
            continue
        how = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
        maps[name] = F.interpolate(coarse, size, mode=how, align_corners=False)[:, 0]
    return maps or {site: coarse[:, 0]}, {"site": site}


METHODS: Mapping[str, Callable[..., tuple[Maps, dict[str, Any]]]] = {
    "gradient": gradient,
    "gradient-times-input": gradient_times_input,
    "smooth-grad": smooth_grad,
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
    "grad-cam": grad_cam,
}


def _slopes(inputs: Inputs, rows: Maps, through: bool) -> Maps:
    """The mean of the gradients over rows."""
    side = inputs.uncut() if through else None
    return {name: found.mean(0) for name, found in (side or inputs).gradients(rows).items()}


def _lengths(inputs: Inputs, slopes: Maps) -> Maps:
    return {
        name: part.norm(dim=inputs.unit(name)) if inputs.is_tokens(name) else part for name, part in slopes.items()
    }


def _windows(value: Tensor, axes: list[int], wide: list[int], pace: list[int]) -> Tensor:
    """[windows, 1, …]: where each window lies; the last of a row may stick out and is cut off."""
    lines = []
    for axis, size, step in zip(axes, wide, pace, strict=True):
        length = value.shape[axis]
        starts = torch.arange(-(-max(length - size, 0) // step) + 1)[:, None] * step
        places = torch.arange(length)
        lines.append((places >= starts) & (places < starts + size))
    found = torch.ones(1, *[1] * value.ndim, dtype=torch.bool)
    for axis, line in zip(axes, lines, strict=True):
        shape = [1] * value.ndim
        shape[axis] = value.shape[axis]
        found = (found[:, None] & line.view(1, len(line), *shape)).flatten(0, 1)
    return found.expand(len(found), 1, *value.shape[1:])


def _sizes(given: int | tuple[int, ...] | None, default: list[int], what: str) -> list[int]:
    if given is None:
        return default
    sizes = list(given) if isinstance(given, (tuple, list)) else [given] * len(default)
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if len(sizes) != len(default) or not whole:
        raise InputError(f"The {what} {given!r} does not fit; give {len(default)} whole numbers from 1 on.")
    return sizes


def _say(baseline: Any) -> Any:
    if isinstance(baseline, str) and not baseline:
        return "the mean of tokens, zero of other inputs"
    return baseline if isinstance(baseline, (str, int, float)) else f"a {type(baseline).__name__}"

