"""A causal test of a label: taken out, the latent should make what it promotes less likely, where the label says so.

The latent's part alone is subtracted from the site (its activation times its decoder row), so the reconstruction's
error stays as it is. The change in log probability of the promoted outputs is compared between rows where the label
holds and rows where it does not, and with other latents taken out in the same way.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..run.interventions import add
from ..run.network import Network
from ..run.trace import Trace
from .dictionary import concatenated
from .grounds import example_ground
from .intervals import bootstrap
from .labels import Label, halves

if TYPE_CHECKING:
    from .index import LatentIndex

WORDS = 5


@dataclass(frozen=True)
class CausalTest:
    """`inside`, `outside`: mean loss of log probability of the promoted outputs, in nats, where the label holds and
    where it does not, when the latent is taken out (positive: they became less likely). `contrast`: the mean over
    examples of the difference, with a 95 % interval (bootstrap over examples). `controls` are the contrasts of other
    latents taken out, `p` the share of them (and of itself) that reach it. Higher speaks for the label."""

    latent: int
    promoted: tuple[str, ...]
    inside: float
    outside: float
    contrast: float
    interval: tuple[float, float]
    controls: tuple[float, ...]
    p: float
    rows: tuple[int, int]
    how: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"without latent {self.latent}, {' '.join(map(repr, self.promoted))} lose {self.inside:.3f} nats where the "
            f"label holds ({self.rows[0]:,} rows) and {self.outside:.3f} elsewhere ({self.rows[1]:,}): contrast "
            f"{self.contrast:+.3f} ({self.interval[0]:+.3f} to {self.interval[1]:+.3f}); {len(self.controls)} other "
            f"latents at most {max(self.controls, default=float('nan')):+.3f}, p = {self.p:.3f}"
        )


def causal_test(
    net: Network, index: LatentIndex, label: Label, *, examples: int = 64, controls: int = 20, seed: int = 0
) -> CausalTest:
    """Take a label's latent out of held-out examples of one shape, and `controls` others that fire about as often.

    Promoted are the five outputs that its decoder's direct path raises most; of networks without one, those that
    training examples show to fall most. Raises InputError for another network, a label without a rule, or where the
    label holds everywhere or nowhere.
    """
    if label.rule is None:
        raise InputError(f"The label of latent {label.latent} is words alone; it says nothing that can be predicted.")
    if index.facts["network"] not in ("", net.fingerprint):
        raise InputError(f"The index was made with another network than '{net.name}'; open that one.")
    parts = halves(index, int(label.how["seed"]))
    inputs, held = _inputs(index, parts.test_rows, examples)
    trace = net.record(inputs)
    holds = _holds(index, label, held, trace)
    if holds.all() or not holds.any():
        raise InputError("The label holds on all of these rows or on none, so there is nothing to compare; take more.")
    ids = None
    if index.words is not None and "promoted" in index.words.ids:
        ids, by = (table["promoted"][label.latent][:WORDS] for table in (index.words.ids, index.words.values))
        ids = ids[by > 0]
    if ids is None or not len(ids):
        some = net.record(_inputs(index, parts.train_rows, examples)[0])
        fall = (_outputs(some) - _outputs(_without(some, index, label.latent))).flatten(0, -2).mean(0)
        ids = fall.topk(min(WORDS, len(fall))).indices.numpy()
    clean = _promoted(trace, ids)
    effect = (clean - _promoted(_without(trace, index, label.latent), ids)).numpy()
    each = _contrast(effect, holds)
    contrast = float(each.mean())
    others = _others(index, label.latent, controls, seed)
    changed = [_promoted(_without(trace, index, j), ids) for j in others]
    beside = [float(_contrast((clean - one).numpy(), holds).mean()) for one in changed]
    names = index.words.names if index.words is not None else {}
    return CausalTest(
        label.latent, tuple(names.get(f"output {int(one)}", f"output {int(one)}") for one in ids),
        float(effect[holds].mean()), float(effect[~holds].mean()), contrast, bootstrap(each, seed=seed), tuple(beside),
        (1 + sum(one >= contrast for one in beside)) / (1 + len(beside)), (int(holds.sum()), int((~holds).sum())),
        {"examples": len(held), "seed": seed, "others": others, "error": "kept", "bootstrap": "1,000 over examples"},
    )  # fmt: skip


def _inputs(index: LatentIndex, rows: np.ndarray, count: int) -> tuple[Tensor, list[int]]:
    """Up to `count` examples of one shape."""
    found: list[tuple[int, np.ndarray]] = []
    for number in np.unique(index.arrays["example"][rows]).tolist():
        value = index.example(number)
        if not found or value.shape == found[0][1].shape:
            found.append((number, value))
        if len(found) == count:
            break
    whole = torch.from_numpy(np.stack([value for _, value in found]))
    return whole if whole.is_floating_point() else whole.long(), [number for number, _ in found]


def _holds(index: LatentIndex, label: Label, held: list[int], trace: Trace) -> np.ndarray:
    """[examples, positions of outputs]: where the label holds; where outputs have none, whether it does anywhere."""
    assert label.rule is not None, "checked before"
    classes = index.facts["classes"]
    found = []
    for number in held:
        low, high = int(index.example_rows[number]), int(index.example_rows[number + 1])
        position = index.arrays["position"][low:high]
        kind = classes[number] if classes else -1
        example = index.example(number)
        ground = example_ground(example, position, label.vocabulary, kind, label.class_names)
        said = label.rule.holds(ground)
        found.append(said[position[:, 0]] if index.facts["kind"] == "text" and index.facts["axes"] == 1 else said)
    along = trace.logits.shape[1:-1]
    table: np.ndarray = np.stack(found)
    anywhere = np.asarray(table.any(1))[:, None]
    return table if len(along) == 1 and table.shape[1] == along[0] else anywhere


def _without(trace: Trace, index: LatentIndex, latent: int) -> Trace:
    """The run with a latent's part taken out of where its dictionary writes; the error stays."""
    dictionary = index.dictionary
    rows: dict[str, Tensor] = {}
    for place in dictionary.card.reads:
        value, axes = trace.value(place.site), trace.locate(place.site).axes
        rows[place.site] = _as_rows(value, axes, place.axis or ("channel" if "channel" in axes else ""), place.site)[0]
    codes = dictionary.codes(concatenated(rows, tuple(rows)).float())
    activation = torch.zeros(len(codes))
    hits = codes.latents == latent
    activation[codes.rows[hits]] = codes.values[hits].float()
    part = activation[:, None] * dictionary.decoder[latent].float()
    edits, start = [], 0
    for place in dictionary.card.writes:
        value, axes = trace.value(place.site), trace.locate(place.site).axes
        axis = place.axis or ("channel" if "channel" in axes else "")
        made = _as_value(part[:, start : start + place.width], value, axes, axis)
        edits.append(add(place.site, -made.to(value.dtype)))
        start += place.width
    return trace.replay(*edits)


def _outputs(trace: Trace) -> Tensor:
    """[examples, positions, outputs]: log probabilities."""
    found = trace.logits.detach().float().log_softmax(-1)
    return found[:, None] if found.ndim == 2 else found


def _promoted(trace: Trace, ids: np.ndarray) -> Tensor:
    """[examples, positions]: the log probability of any of some outputs."""
    return _outputs(trace)[..., torch.from_numpy(np.asarray(ids, np.int64))].logsumexp(-1)


def _contrast(effect: np.ndarray, holds: np.ndarray) -> np.ndarray:
    """For each example where the label holds somewhere, the mean effect there less that elsewhere in it (in all of
    them, where it holds everywhere in it)."""
    rest = float(effect[~holds].mean())
    found = []
    for values, mask in zip(effect, holds, strict=True):
        if mask.any():
            found.append(float(values[mask].mean()) - (rest if mask.all() else float(values[~mask].mean())))
    return np.array(found)


def _others(index: LatentIndex, latent: int, count: int, seed: int) -> list[int]:
    """Latents that fire about as often: drawn from those four times `count` that are nearest in density."""
    order = np.argsort(np.abs(np.log1p(index.fired) - np.log1p(index.fired[latent])), kind="stable")
    near = [int(j) for j in order if j != latent and index.fired[j]][: 4 * count]
    return (
        sorted(np.random.default_rng(seed).choice(near, min(count, len(near)), replace=False).tolist()) if near else []
    )


def _as_rows(value: Tensor, axes: tuple[str, ...], axis: str, site: str) -> tuple[Tensor, tuple[int, ...]]:
    """(a value as [rows, width] with rows in the order of examples and positions, the sizes of those axes).

    Raises InputError when the value has no axis of that name, or no axis of examples.
    """
    names = list(axes) if len(axes) == value.ndim else [str(place) for place in range(value.ndim)]
    if axis and axis not in names:
        raise InputError(f"'{site}' has no axis '{axis}'; its axes are {', '.join(names)}.")
    along = names.index(axis) if axis else value.ndim - 1
    first = names.index("batch") if "batch" in names else 0
    if value.ndim < 2 or first == along:
        raise InputError(f"'{site}' has shape {tuple(value.shape)}, which is no vector for each example.")
    rest = [place for place in range(value.ndim) if place not in (along, first)]
    moved = value.permute(first, *rest, along)
    return moved.reshape(-1, moved.shape[-1]), tuple(moved.shape[:-1])


def _as_value(rows: Tensor, value: Tensor, axes: tuple[str, ...], axis: str) -> Tensor:
    """Rows, as `_as_rows` gave those of `value`, laid out as a value again."""
    names = list(axes) if len(axes) == value.ndim else [str(place) for place in range(value.ndim)]
    along = names.index(axis) if axis else value.ndim - 1
    first = names.index("batch") if "batch" in names else 0
    order = [first, *(place for place in range(value.ndim) if place not in (along, first)), along]
    shaped = rows.view([value.shape[place] for place in order])
    return shaped.permute([order.index(place) for place in range(value.ndim)])
