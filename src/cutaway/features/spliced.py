"""What a network loses when it goes on with a dictionary's reconstruction in place of the value itself.

Loss recovered: 0 is as bad as ablating the value, 1 as good as leaving it alone. It flatters: ablating a residual
stream ruins a model, so a poor reconstruction recovers most of that; read it beside the controls, and beside the added
loss.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, SiteError
from ..run.interventions import patch
from ..run.network import Network
from ..run.structure import tensors
from ..run.trace import Trace
from ..site import Site
from .card import Place
from .dictionary import Dictionary, concatenated
from .figures import Figure, figure
from .uncertainty import resampled

BATCH = 8
Metric = Callable[..., Tensor]  # of the main output (and, for a cutaway.Metric, the network) to a number an example


@dataclass(frozen=True)
class Losses:
    """A loss an example, of the clean run, of both ablations and of each dictionary, with KL divergences from the clean
    output where outputs are distributions."""

    name: str
    loss: dict[str, np.ndarray]
    kl: dict[str, np.ndarray]


def spliced(
    net: Network,
    inputs: Any,
    dictionaries: Mapping[str, Dictionary],
    means: Mapping[str, Float[Tensor, "d"]],
    *,
    metric: Metric | None = None,
    batch: int = BATCH,
    progress: Callable[[str, int, int], None] = lambda stage, done, of: None,
) -> Losses:
    """Run the inputs clean, ablated and with each dictionary's reconstruction, all at the first one's places.

    `means` are the mean rows of the sites that are written. Without a `metric` (more is better) the loss is the
    next-token cross-entropy where the network predicts next tokens, the KL divergence from the clean output where it
    gives one row of scores, else the mean squared difference from it. Raises InputError for inputs that cannot be run
    together, SiteError for a place that the network lacks.
    """
    card = next(iter(dictionaries.values())).card
    found: dict[str, list[Tensor]] = {}
    apart: dict[str, list[Tensor]] = {}
    name, loss, parts = "", None, list(examples(net, inputs, 1 << 30 if metric is not None else batch))
    for done, (args, kwargs) in enumerate(parts):
        progress("splicing", done, len(parts))
        clean = net.record(*args, **kwargs)
        if loss is None:
            name, loss = _loss(clean, metric)
        for variant, output in _variants(clean, card.reads, card.writes, dictionaries, means):
            found.setdefault(variant, []).append(loss(output, clean))
            if name != "squared difference from the clean output":
                apart.setdefault(variant, []).append(_divergence(output, clean))
    if loss is None:
        raise InputError("There is no input to splice a reconstruction into; give at least one example.")
    joined = [
        {key: torch.cat(value).double().cpu().numpy() for key, value in table.items()} for table in (found, apart)
    ]
    return Losses(name, *joined)


def recovered(losses: Losses, which: str) -> list[Figure]:
    """Loss recovered against zero and mean ablation, the added loss, and the KL divergence of a spliced run, with
    bootstrap intervals over examples."""
    clean, own = losses.loss["clean"], losses.loss[which]
    count, on = len(clean), f"{losses.name}, bootstrap over {len(clean):,} examples"
    found = []
    for ablation in ("zero", "mean"):
        cut = losses.loss[ablation]
        name, ends = f"loss recovered ({ablation})", (cut - own, cut - clean)
        if abs(ends[1].mean()) < 1e-9:
            none = f"{ablation} ablation changes nothing here, so there is nothing to recover"
            found.append(figure(name, (float("nan"), None, None), "higher", none))
            continue
        told = resampled(_quotient(*ends), count)
        how = f"(loss ablated − loss spliced) / (loss ablated − loss clean); {on}"
        found.append(figure(name, told, "higher", how, ablated=float(cut.mean()), clean=float(clean.mean())))
    added = resampled(lambda rows: float((own - clean)[rows].mean()), count)
    found.append(figure("added loss", added, "lower", f"loss spliced − loss clean; {on}", spliced=float(own.mean())))
    if losses.kl and not losses.name.startswith("KL"):
        told = resampled(lambda rows: float(losses.kl[which][rows].mean()), count)
        found.append(figure("downstream KL", told, "lower", f"of the spliced output from the clean one, nats; {on}"))
    return found


def _quotient(top: np.ndarray, bottom: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda rows: float(top[rows].sum() / bottom[rows].sum())


# ---- runs


def examples(net: Network, inputs: Any, batch: int) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Inputs in batches of one shape, as arguments and keywords: from a tensor, texts, or a list of single examples
    (tensors, or mappings from position or keyword to a tensor). Anything else is run as it is."""
    listed = [inputs] if isinstance(inputs, str) else inputs
    if isinstance(listed, Tensor):
        yield from (((part,), {}) for part in listed.split(batch))
        return
    if not isinstance(listed, Sequence) or not all(isinstance(one, (str, Tensor, Mapping)) for one in listed):
        yield (listed,), {}
        return
    waiting: list[dict[str, Tensor]] = []
    for one in listed:
        made = dict(one) if isinstance(one, Mapping) else {"0": net.encode(one)[0] if isinstance(one, str) else one}
        if waiting and (len(waiting) == batch or _shapes(made) != _shapes(waiting[0])):
            yield _together(waiting)
            waiting = []
        waiting.append(made)
    if waiting:
        yield _together(waiting)


def _shapes(example: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in example.items()}


def _together(batch: list[dict[str, Tensor]]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    table = {name: torch.stack([one[name] for one in batch]) for name in batch[0]}
    places = sorted((name for name in table if name.isdigit()), key=int)
    return tuple(table[name] for name in places), {name: t for name, t in table.items() if name not in places}


def rows_at(trace: Trace, place: Place) -> tuple[Float[Tensor, "rows d"], Callable[[Tensor], dict[str, Tensor]]]:
    """The rows of a place in a run, and how to lay rows out again as values by site: one, or each step of a recurrence
    for a place with `@*`.

    Raises InputError when its rows have another width, SiteError for a site that is not there.
    """
    found: list[Tensor] = []
    shapes: list[tuple[str, torch.Size, int]] = []
    for site in steps(trace, place.site):
        value = trace.value(site)
        axis = _vectors(trace, site, place, tuple(value.shape))
        moved = value.movedim(axis, -1)
        shapes.append((site, moved.shape, axis))
        found.append(moved.reshape(-1, place.width))
    ends = [len(rows) for rows in found]

    def lay(rows: Tensor) -> dict[str, Tensor]:
        parts = zip(shapes, rows.split(ends), strict=True)
        return {site: part.reshape(shape).movedim(-1, axis) for (site, shape, axis), part in parts}

    return torch.cat(found), lay


def steps(trace: Trace, site: str) -> list[str]:
    """The sites that a name stands for: itself, or with `@*` every step of a recurrence."""
    parsed = Site.parse(site)
    if "@*" not in parsed.name:
        return [site]
    pattern = re.compile(re.escape(parsed.name).replace(re.escape("@*"), r"(?:@(\d+))?"))
    there = {name: int(match[1] or 0) for name in trace.lift().sites if (match := pattern.fullmatch(name))}
    if not there:
        raise SiteError(f"'{site}' matches no step of a recurrence in this run.")
    return [str(Site(name, parsed.index)) for name in sorted(there, key=lambda name: there[name])]


def _vectors(trace: Trace, site: str, place: Place, shape: tuple[int, ...]) -> int:
    """The axis that vectors lie along: the one that the place names, else the last, else the only one that fits."""
    found = trace.locate(site)
    fold, named_axes = trace.layout(found)
    axes = list(named_axes if fold == found.fold else found.axes)
    for name, index in Site.parse(site).index:
        if ":" not in index and "|" not in index and name in axes:
            axes.remove(name)
    where = place.axis or next((usual for usual in ("channel", "neuron") if usual in axes), "")
    named = [axes.index(where)] if where in axes else [len(shape) - 1] if not where else []
    fitting = [axis for axis in named or range(1, len(shape)) if shape[axis] == place.width]
    if len(fitting) != 1:
        raise InputError(f"'{site}' has shape {shape} here, and the dictionary's vectors have {place.width} numbers.")
    return fitting[0]


def _variants(
    clean: Trace,
    reads: Sequence[Place],
    writes: Sequence[Place],
    dictionaries: Mapping[str, Dictionary],
    means: Mapping[str, Tensor],
) -> Iterator[tuple[str, Tensor]]:
    """Main outputs: clean, ablated at all places that are written, and with each dictionary's reconstruction there."""
    yield "clean", clean.logits.detach()
    read = concatenated({place.site: rows_at(clean, place)[0] for place in reads}, tuple(p.site for p in reads))
    there = {place.site: rows_at(clean, place) for place in writes}

    def replayed(values: Mapping[str, Tensor]) -> Tensor:
        laid = [there[site][1](rows.to(there[site][0])) for site, rows in values.items()]
        edits = [patch(site, value) for part in laid for site, value in part.items()]
        with torch.no_grad():
            return clean.replay(*edits).logits.detach()

    yield "zero", replayed({site: torch.zeros_like(rows) for site, (rows, _) in there.items()})
    yield "mean", replayed({site: means[site].to(rows).expand_as(rows) for site, (rows, _) in there.items()})
    for name, dictionary in dictionaries.items():
        made = torch.cat([part for _, part in dictionary.reconstructions(read.to(dictionary.decoder.device))])
        if any(len(rows) != len(made) for rows, _ in there.values()):
            raise InputError("The places that it reads and writes have different numbers of rows in a run.")
        yield name, replayed(dict(zip(there, made.split([place.width for place in writes], 1), strict=True)))


# ---- losses


def _loss(clean: Trace, metric: Metric | None) -> tuple[str, Callable[[Tensor, Trace], Tensor]]:
    """What is measured, from the first clean run."""
    if metric is not None:

        def own(output: Tensor, trace: Trace) -> Tensor:  # a cutaway.Metric is given the network too
            found = metric(output, trace.net) if hasattr(metric, "read") else metric(output)
            if not isinstance(found, Tensor) or found.shape != output.shape[:1]:
                raise InputError(f"The metric must give a tensor with one number for each of {len(output)} examples.")
            return -found.detach()

        return f"minus {getattr(metric, 'name', getattr(metric, '__name__', 'metric'))}", own
    output, given = clean.logits, next(tensors((clean.args, clean.kwargs)), None)
    if given is not None and not given.is_floating_point() and given.ndim == 2 and _a_row_each(given, output):
        fits = int(given.max()) < output.shape[2] and int(given.min()) >= 0
        # A network that predicts next tokens does better than an even guess.
        if fits and float(_next_token(output, clean).mean()) < np.log(output.shape[2]):
            return "next-token cross-entropy", _next_token
    same = given is not None and given.is_floating_point() and given.shape == output.shape
    if output.ndim in (2, 3) and output.shape[-1] > 1 and not same:
        return "KL divergence from the clean output", _divergence
    return (
        "squared difference from the clean output",
        lambda made, trace: (made - trace.logits.detach()).square().reshape(len(made), -1).mean(1),
    )


def _a_row_each(ids: Tensor, output: Tensor) -> bool:
    """Whether there is a row of scores for each of several ids."""
    return output.ndim == 3 and output.shape[:2] == ids.shape and ids.shape[1] > 1


def _next_token(output: Tensor, clean: Trace) -> Tensor:
    ids = next(tensors((clean.args, clean.kwargs)))
    chances = output.detach()[:, :-1].float().log_softmax(-1)
    return -chances.gather(2, ids[:, 1:, None])[..., 0].mean(1)


def _divergence(output: Tensor, clean: Trace) -> Tensor:
    wanted, made = clean.logits.detach().float().log_softmax(-1), output.float().log_softmax(-1)
    return (wanted.exp() * (wanted - made)).sum(-1).reshape(len(made), -1).mean(1)
