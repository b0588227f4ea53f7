"""Tables of an index's latents: by density, strength or label, by a word, by a token or an example they fire on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from .index import LatentIndex

SORTS = ("density", "max", "label", "latent")
_MOST_ROWS = 50_000  # of a token's occurrences that are looked at
_SAID = 5  # promoted words that a search looks at


def search(
    index: LatentIndex, text: str = "", *, sort: str = "density", top: int = 20, fires: bool = True
) -> list[dict[str, Any]]:
    """Latents whose label, promoted word or number matches `text`, by density, largest activation, label (the best
    first) or number. `fires`: only those that fire at all. Raises InputError for another order."""
    if sort not in SORTS:
        raise InputError(f"Latents are listed by {', '.join(SORTS)}, not by {sort!r}.")
    labels, wanted = index.labels, text.casefold()
    keys = {
        "density": lambda j: -index.fired[j], "max": lambda j: -index.largest[j], "latent": lambda j: j,
        "label": lambda j: (j not in labels, -labels[j].score.f1 if j in labels else 0),
    }  # fmt: skip
    chosen = [j for j in range(len(index)) if (index.fired[j] or not fires) and _matches(index, j, wanted)]
    return [summary(index, j) for j in sorted(chosen, key=keys[sort])[:top]]


def summary(index: LatentIndex, latent: int) -> dict[str, Any]:
    """One line about a latent, JSON-able."""
    label = index.labels.get(latent)
    return {
        "latent": latent, "fired": int(index.fired[latent]), "max": float(index.largest[latent]),
        "density": float(index.fired[latent] / index.facts["rows"]), "label": label.text if label else "",
        "f1": label.score.f1 if label else None,
        "promotes": index.words.promoted(latent, 4) if index.words is not None else [],
    }  # fmt: skip


def on_token(index: LatentIndex, token: str | int, top: int = 20) -> list[dict[str, Any]]:
    """The latents that fire on a token, those first that tell it best from others: share of its occurrences that they
    fire on less that of all others. Raises InputError for a token that the examples do not hold."""
    names = index.facts["vocabulary"] or []
    number = token if isinstance(token, int) else names.index(token) if token in names else -1
    rows = np.flatnonzero(index.tokens == number) if number >= 0 else np.zeros(0, np.int64)
    if not len(rows):
        raise InputError(f"The examples hold no token {token!r}; give another one (mind the space before a word).")
    offsets, rows = index.arrays["offsets"], rows[:_MOST_ROWS]
    spans = [np.arange(offsets[row], offsets[row + 1]) for row in rows]
    hits = np.bincount(index.arrays["latents"][np.concatenate(spans)], minlength=len(index))
    elsewhere = (index.fired - hits) / max(index.facts["rows"] - len(rows), 1)
    order = np.argsort(elsewhere - hits / len(rows), kind="stable")[:top]
    return [
        {**summary(index, int(j)), "share": float(hits[j] / len(rows)), "elsewhere": float(elsewhere[j])}
        for j in order if hits[j]
    ]  # fmt: skip


def on_example(index: LatentIndex, number: int, top: int = 20) -> list[dict[str, Any]]:
    """The latents that fire on an example, the strongest first relative to their largest activation anywhere. Raises
    InputError when there is no such example."""
    index.example(number)
    low, high = (int(index.example_rows[place]) for place in (number, number + 1))
    begin, end = int(index.arrays["offsets"][low]), int(index.arrays["offsets"][high])
    latents, shares = index.arrays["latents"][begin:end], index.arrays["values"][begin:end].astype(np.float32)
    best = np.zeros(len(index), np.float32)
    np.maximum.at(best, latents, np.abs(shares))
    order = np.argsort(-best, kind="stable")[:top]
    return [{**summary(index, int(j)), "of_max": float(best[j])} for j in order if best[j]]


def _matches(index: LatentIndex, latent: int, wanted: str) -> bool:
    if not wanted:
        return True
    label = index.labels.get(latent)
    said = [label.text] if label is not None else []
    said += index.words.promoted(latent, _SAID) if index.words is not None else []
    return wanted == str(latent) or any(wanted in word.casefold() for word in said)
