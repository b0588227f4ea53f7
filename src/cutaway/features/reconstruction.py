"""How well and how sparsely a dictionary writes the values that it should write: figures that need rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .dictionary import Dictionary
from .figures import Figure, figure
from .uncertainty import ratio, share

DENSE = 0.1  # a latent that fires on more rows than this is dense


def reconstruction(
    dictionary: Dictionary, read: Float[Tensor, "rows d_in"], written: Float[Tensor, "rows d_out"]
) -> tuple[list[Figure], dict[str, Any]]:
    """L0, FVU (at each place that it writes, where there are several), explained variance, cosine, the relative
    reconstruction bias (Rajamanoharan et al. 2024, arXiv:2404.16014), dead and dense latents, and the histogram of how
    often latents fire. Memory is bounded by the rows given."""
    places = _parts(dictionary)
    count, mean = len(read), written.mean(0)
    counts = torch.zeros(dictionary.latents, dtype=torch.long)
    keys = ("l0", "dot", "made", "there", *(f"error {name}" for name in places), *(f"there {name}" for name in places))
    found: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    start = 0
    for codes, made in dictionary.reconstructions(read):
        target = written[start : start + len(made)]
        start += len(made)
        counts += torch.bincount(codes.latents, minlength=dictionary.latents)
        off, away = (made - mean).double(), (target - mean).double()
        table = {
            "l0": codes.offsets.diff(), "dot": (off * away).sum(1), "made": off.square().sum(1),
            "there": away.square().sum(1),
        }  # fmt: skip
        for name, part in places.items():
            table[f"error {name}"] = (off - away)[:, part].square().sum(1)
            table[f"there {name}"] = away[:, part].square().sum(1)
        for key, value in table.items():
            found[key].append(value.double().numpy())
    rows = {key: np.concatenate(value) for key, value in found.items()}
    return _figures(rows, places, counts, count), _histogram(counts, count)


def _parts(dictionary: Dictionary) -> dict[str, slice]:
    """The columns of each place that it writes."""
    ends, found = 0, {}
    for place in dictionary.card.writes:
        found[place.site] = slice(ends, ends := ends + place.width)
    return found if ends == dictionary.out_width else {"": slice(None)}


def _figures(rows: dict[str, np.ndarray], places: dict[str, slice], counts: Tensor, count: int) -> list[Figure]:
    on = f"{count:,} rows, taken as independent"
    error = np.sum([rows[f"error {name}"] for name in places], axis=0)
    cosine = rows["dot"] / np.sqrt(np.maximum(rows["made"] * rows["there"], 1e-30))
    unexplained = ratio(error, rows["there"])
    explained = (1 - unexplained[0], *(None if end is None else 1 - end for end in unexplained[:0:-1]))
    found = [
        figure("L0", ratio(rows["l0"]), "lower", f"latents that fire on a row, mean over {on}"),
        figure("FVU", unexplained, "lower", f"squared error / squared distance from the mean row, over {on}"),
        figure("explained variance", explained, "higher", "1 − FVU"),  # type: ignore[arg-type]
        figure("cosine", ratio(cosine), "higher", f"of row and reconstruction, both less the mean row; mean over {on}"),
        figure(
            "relative bias", ratio(rows["made"], rows["dot"]), "nearer to 1",
            f"|made|² / made·row, both less the mean row: below 1 it shrinks; over {on}",
        ),
    ]  # fmt: skip
    if len(places) > 1:
        for name in places:
            told = ratio(rows[f"error {name}"], rows[f"there {name}"])
            found.append(figure(f"FVU at {name}", told, "lower", f"as FVU, of what it writes there; over {on}"))
    latents = len(counts)
    dead, dense = int((counts == 0).sum()), int((counts > DENSE * count).sum())
    bound = f"never fired on {count:,} rows, so each fires on fewer than {3 / count:.1e} of rows (95 %, rule of three)"
    found += [
        figure("dead latents", (share(dead, latents)[0], None, None), "lower", bound, count=dead, of=latents),
        figure("dense latents", (share(dense, latents)[0], None, None), "lower",
               f"fired on more than {DENSE:.0%} of {count:,} rows", count=dense, of=latents),
    ]  # fmt: skip
    return found


def _histogram(counts: Tensor, count: int) -> dict[str, Any]:
    """How many latents fire how often, in half powers of ten of the share of rows."""
    edges = np.arange(np.floor(2 * np.log10(1 / max(count, 1))) / 2, 0.25, 0.5)
    alive = counts[counts > 0].double().numpy() / count
    made = np.histogram(np.log10(alive), edges)[0] if len(alive) else np.zeros(len(edges) - 1)
    return {"log10_edges": edges.tolist(), "latents": made.astype(int).tolist(), "never": int((counts == 0).sum())}
