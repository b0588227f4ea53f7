"""A page about a latent: where it fires, from strongest to weakest, how often and how strongly, and what it writes.

The strongest examples alone mislead (Bolukbasi et al. 2021, arXiv:2104.07143), so examples from equal intervals of the
activation's range are drawn beside them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .intervals import wilson
from .words import readable

if TYPE_CHECKING:
    from ..drawing.plot import Plot
    from .index import LatentIndex

BINS = 24
_MOST_ROWS = 5_000  # rows of a latent over which it is seen what else fires
_MOST_SHOWN = 4_096  # numbers of an input that a page holds


@dataclass(frozen=True)
class Shown:
    """One row in its context. Text: `tokens` around place `at`, each with its activation. Images and series: `shape` of
    the activations over positions (in order), and the input's numbers with their shape where they are few."""

    example: int
    position: tuple[int, ...]
    activation: float
    activations: tuple[float, ...]
    shape: tuple[int, ...]
    at: int = 0
    tokens: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    values_shape: tuple[int, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Page:
    """What there is to see of a latent; `to_dict` gives all of it, a notebook shows it, `plot()` draws it."""

    latent: int
    about: dict[str, Any]
    top: tuple[Shown, ...]
    intervals: tuple[tuple[float, float, int, tuple[Shown, ...]], ...]
    histogram: dict[str, list[float]]
    tokens: tuple[dict[str, Any], ...]
    words: dict[str, list[tuple[str, float]]]
    nearest: tuple[tuple[int, float], ...]
    together: tuple[tuple[int, float], ...]
    label: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)

    def __str__(self) -> str:
        about = self.about
        told_rows = f"{about['rows']:,} row{'s' * (about['rows'] != 1)}"
        told = [
            f"latent {self.latent} of {about['sites']}: fires on {about['fired']:,} of {told_rows} "
            f"({about['density']:.3%}, 95 % {about['low']:.3%} to {about['high']:.3%}), at most {about['max']:.3g}"
        ]
        told += [f"label: {self.label['text']} (F1 {self.label['score']['f1']:.2f})"] if self.label else []
        for side, entries in self.words.items():
            told += [f"{side}: {'  '.join(repr(word) for word, _ in entries[:8])}"] if entries else []
        told += [f"fires on: {'  '.join(repr(row['token']) for row in self.tokens[:8])}"] if self.tokens else []
        told += [f"{shown.activation:8.3f}  {_line(shown, about['gap'])}" for shown in self.top[:8]]
        return "\n".join(told)

    def plot(self) -> Plot:
        """The page as a drawing (see `drawing.latents`)."""
        from ..drawing.latents import latent_page

        return latent_page(self.to_dict())

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()


def _line(shown: Shown, gap: str) -> str:
    if not shown.tokens:
        where = f" at {', '.join(map(str, shown.position))}" if shown.position else ""
        return f"example {shown.example}{where}" + (f" ({shown.kind})" if shown.kind else "")
    parts = [f"[{token}]" if place == shown.at else token for place, token in enumerate(shown.tokens)]
    return repr(gap.join(parts))[1:-1]


def make_page(
    index: LatentIndex, latent: int, *, top: int = 12, parts: int = 5, each: int = 4, context: int = 10, seed: int = 0
) -> Page:
    """The page of a latent: `top` strongest rows, one an example at most, and `each` drawn by `seed` from `parts` equal
    intervals of the activation's range; `context` tokens on each side. Raises InputError when there is no such latent.
    """
    if context < 0 or top < 0 or parts < 1 or each < 0:
        raise InputError("Counts of examples and context cannot be negative, and there is one interval at least.")
    rows, values = index.of(latent)
    total = int(index.facts["rows"])
    low, high = wilson(len(rows), total)
    about = {
        "sites": ", ".join(index.facts["sites"]), "kind": index.facts["kind"], "rows": total, "fired": len(rows),
        "density": len(rows) / total, "low": low, "high": high, "seed": seed, "network": index.facts["name"],
        "max": float(values[0]) if len(values) else 0.0, "mean": float(values.mean()) if len(values) else 0.0,
        "dictionary": index.facts["kind_of_dictionary"], "latents": len(index), "gap": index.gap,
    }  # fmt: skip
    nearest, together = _nearest(index, latent), _together(index, latent, rows)
    label = index.labels.get(latent)
    strongest = _strongest(index, rows, values, top)
    return Page(
        latent, about, tuple(_shown(index, latent, row, value, context) for row, value in strongest),
        tuple(_drawn(index, latent, rows, values, parts, each, context, seed)), _histogram(values),
        tuple(_tokens(index, rows, values)), _words(index, latent), nearest, together,
        label.to_dict() if label is not None else None,
    )  # fmt: skip


def _strongest(index: LatentIndex, rows: np.ndarray, values: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The strongest rows of different examples."""
    some = np.array(rows[: max(64 * count, 1)])
    _, first = np.unique(index.arrays["example"][some], return_index=True)
    return [(int(some[place]), float(values[place])) for place in np.sort(first)[:count]]


def _drawn(
    index: LatentIndex,
    latent: int,
    rows: np.ndarray,
    values: np.ndarray,
    parts: int,
    each: int,
    context: int,
    seed: int,
) -> list[tuple[float, float, int, tuple[Shown, ...]]]:
    if not len(rows):
        return []
    edges = np.linspace(min(float(values[-1]), 0.0), float(values[0]), parts + 1)
    generator = np.random.default_rng([seed, latent])
    found = []
    for low, high in zip(edges[-2::-1], edges[:0:-1], strict=True):  # the strongest interval first
        begin, end = (
            np.searchsorted(-values, [-high, -low]) if high < edges[-1] else (0, np.searchsorted(-values, -low))
        )
        picked = np.sort(generator.choice(end - begin, min(each, end - begin), replace=False)) + begin
        shown = tuple(_shown(index, latent, int(rows[place]), float(values[place]), context) for place in picked)
        found.append((float(low), float(high), int(end - begin), shown))
    return found


def _shown(index: LatentIndex, latent: int, row: int, value: float, context: int) -> Shown:
    example, position = int(index.arrays["example"][row]), tuple(int(at) for at in index.arrays["position"][row])
    first, last = int(index.example_rows[example]), int(index.example_rows[example + 1])
    inputs, classes = index.example(example), index.facts["classes"]
    kind = index.facts["class_names"][classes[example]] if classes else ""
    if index.facts["kind"] == "text" and len(position) == 1:
        low, high = max(position[0] - context, 0), min(position[0] + context + 1, len(inputs))
        where = index.arrays["position"][first:last, 0]
        around = np.zeros(len(inputs), np.float32)  # 0 at positions of which no row was kept
        around[where] = index.at(latent, first, last)
        tokens = tuple(readable(index.token_text(int(token))) for token in inputs[low:high])
        return Shown(example, position, value, _floats(around[low:high]), (high - low,), position[0] - low, tokens,
                     kind=kind)  # fmt: skip
    text = index.facts["kind"] == "text"
    tokens = tuple(readable(index.token_text(int(token))) for token in inputs) if text else ()
    few = () if tokens or inputs.size > _MOST_SHOWN else _floats(inputs.ravel())
    shape = tuple(int(one) + 1 for one in index.arrays["position"][first:last].max(0)) if position else ()
    flat = _floats(index.at(latent, first, last))
    return Shown(example, position, value, flat, shape, row - first, tokens, few, inputs.shape if few else (), kind)


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.round(values.astype(np.float64), 5).tolist())


def _histogram(values: np.ndarray) -> dict[str, list[float]]:
    if not len(values):
        return {"edges": [], "counts": []}
    counts, edges = np.histogram(values, BINS, (min(float(values[-1]), 0.0), float(values[0]) or 1.0))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _tokens(index: LatentIndex, rows: np.ndarray, values: np.ndarray, count: int = 12) -> list[dict[str, Any]]:
    """The tokens on which a latent fires, by the sum of its activations there."""
    if not len(rows) or index.facts["kind"] != "text" or index.facts["axes"] != 1:
        return []
    on = index.tokens[rows]
    width = int(index.token_counts.size)
    sums, hits = np.bincount(on, values, width), np.bincount(on, minlength=width)
    return [
        {"token": readable(index.token_text(int(token))), "fired": int(hits[token]),
         "of": int(index.token_counts[token]), "share": float(hits[token] / index.token_counts[token]),
         "mean": float(sums[token] / hits[token])}
        for token in np.argsort(-sums, kind="stable")[:count] if hits[token]
    ]  # fmt: skip


def _words(index: LatentIndex, latent: int) -> dict[str, list[tuple[str, float]]]:
    if index.words is None:
        return {}
    return {side: index.words.listed(latent, side) for side in ("promoted", "suppressed", "read")}


def _nearest(index: LatentIndex, latent: int, count: int = 6) -> tuple[tuple[int, float], ...]:
    """The latents whose decoder directions have the largest cosine with this one's."""
    own = index.directions[latent]
    cosines = index.directions @ own
    cosines[latent] = -np.inf
    return tuple((int(j), float(cosines[j])) for j in np.argsort(-cosines, kind="stable")[:count] if len(index) > 1)


def _together(index: LatentIndex, latent: int, rows: np.ndarray, count: int = 6) -> tuple[tuple[int, float], ...]:
    """The latents that fire on the same rows: rows of both over rows of either, from at most 5,000 of its rows."""
    if not len(rows):
        return ()
    some = np.array(rows) if len(rows) <= _MOST_ROWS else np.array(rows[:: -(-len(rows) // _MOST_ROWS)])
    offsets = index.arrays["offsets"]
    begins, sizes = offsets[some], offsets[some + 1] - offsets[some]
    places = np.repeat(begins - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) + np.arange(int(sizes.sum()))
    both = np.bincount(index.arrays["latents"][places], minlength=len(index)) * (len(rows) / len(some))
    either = len(rows) + index.fired - both
    share = both / np.maximum(either, 1)
    share[latent] = 0
    return tuple((int(j), float(share[j])) for j in np.argsort(-share, kind="stable")[:count] if share[j] > 0)
