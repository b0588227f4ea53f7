"""Activation patching at many places: each site at each index of an axis, one patch a world.

Every world replays only what its patch can reach; the worlds of one site run in one batch; a metric that reads one
position computes only that position's output. Meng et al. 2022 (arXiv:2202.05262); Heimersheim, Nanda 2024
(arXiv:2404.15255).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError, SiteError
from ..run.narrow import narrow
from ..run.replay import Plan, execute, plan
from ..run.tape import Tape
from ..run.trace import Trace
from ..run.worlds import over
from .metric import Metric

# Numbers that the patched values of one batch of worlds may hold.
BUDGET = 8_000_000


@dataclass(frozen=True, eq=False)
class Sweep:
    """`effect[i, j]` is the metric, mean over examples, when site i at index j has the source's value.

    It is rescaled so that the run itself is 0 and the source run is 1 (1: this place carries all of it). `metric` is
    the unscaled [.., batch].
    """

    sites: tuple[str, ...]
    axis: str
    effect: Float[Tensor, "sites places"]
    metric: Float[Tensor, "sites places batch"]


def patch_sweep(
    run: Trace,
    source: Trace,
    metric: Metric,
    sites: Sequence[str],
    axis: str = "pos",
    progress: Callable[[str, int, int], None] | None = None,
) -> Sweep:
    """Patch each site at each index of `axis` from `source` into `run`, one at a time.

    Raises SiteError for a site without that axis, InputError for runs of different shapes, MetricError when the metric
    is the same in both runs.
    """
    lifted = run.lift()
    tape, other = lifted.tape, source.lift().tape
    output = lifted.output.reads[0].value
    finish: Callable[[Tensor], Tensor] = lambda value: value  # noqa: E731
    target = output
    if metric.position is not None and run.logits.ndim == 3:
        target, finish = narrow(tape, output, 1, metric.position)
    rows = []
    with torch.no_grad():
        start, end = metric(run.logits, run.net), metric(source.logits, source.net)
        if abs(float(end.mean() - start.mean())) < 1e-12:
            raise MetricError(f"The metric '{metric.name}' is the same in both runs, so there is nothing to restore.")
        for done, site in enumerate(sites):
            if progress is not None:
                progress("patching", done, len(sites))
            found = run.locate(site)
            if axis not in found.axes:
                raise SiteError(f"'{site}' has no axis '{axis}'; its axes are {', '.join(found.axes)}.")
            value, _ = tape.graph.find(found.address)
            place = found.axes.index(axis)
            steps = plan(tape, [], [target], [value])
            old, new = found.unfolded(_value(tape, value)), found.unfolded(_value(other, value))
            if old.shape != new.shape:
                raise InputError(
                    f"'{site}' has shape {tuple(new.shape)} in the source run and {tuple(old.shape)} here."
                )
            rows.append(_patches(steps, tape, value, place, old, new, target, finish, metric, run))
    found_metric = torch.stack(rows)
    effect = (found_metric.mean(2) - start.mean()) / (end.mean() - start.mean())
    return Sweep(tuple(sites), axis, effect, found_metric)


def _patches(
    steps: Plan,
    tape: Tape,
    value: int,
    place: int,
    old: Tensor,
    new: Tensor,
    target: int,
    finish: Callable[[Tensor], Tensor],
    metric: Metric,
    run: Trace,
) -> Tensor:
    """[places, batch]: the metric with one index of the axis patched, for each index."""
    count = old.shape[place]
    shape = [count] + [1] * old.ndim
    shape[place + 1] = count
    masks = torch.eye(count, dtype=torch.bool).view(shape)
    worlds = torch.where(masks, new, old)
    if worlds.ndim - 1 > len(tape.graph.values[value].shape):  # batch and heads are one axis in the run
        worlds = worlds.flatten(1, 2)
    made = []
    for chunk in worlds.split(max(1, BUDGET // old.numel())):
        found = over(lambda given: finish(execute(tape, steps, given=given)[target]), {value: chunk})
        made += [metric.of(row, run.net) for row in found]
    return torch.stack(made)


def _value(tape: Tape, value: int) -> Tensor:
    return execute(tape, plan(tape, [], [value]))[value]
