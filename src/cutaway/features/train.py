"""Training a dictionary: any kind, on any rows, from two numbers: how many latents, and how many fire on a row."""

from __future__ import annotations

import itertools
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .architectures import kind_named, masks, spans
from .card import Card
from .checkpoints import interruptions, keep, kept
from .codes import PIECE, Codes
from .dense_step import DenseStep, Step, StepReport
from .dictionary import Dictionary, concatenated
from .objectives import RULES, linear, made
from .plan import Plan, planned
from .refit import gains, lowers
from .rows import Rows
from .scaling import Units, first_weights, folded, units_of
from .sparse_step import Options, SparseStep
from .store import Activations

Progress = Callable[[str, int, int], None]
LOOKED_AT = 1 << 15  # rows from which means and scales are taken, at most
KEEP_EVERY = 60.0  # seconds between checkpoints
PROBE = (8, 2048)  # examples that a card keeps, and numbers in them, at most
NEAR = 0.1  # what L0 may be off by on rows that were kept out, as a share of k, before it is told
_READS = ("encoder", "encoder_bias")
SPARSE = ("topk", "batchtopk", "matryoshka")
SPARSE_FROM = 512  # latents from which the sparse step is the faster one


def train_dictionary(
    rows: Rows,
    latents: int,
    k: float,
    *,
    kind: str = "batchtopk",
    reads: Sequence[str] | None = None,
    writes: Sequence[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
    **options: Any,
) -> Dictionary:
    """A dictionary of `latents` latents, about `k` of which fire on a row, trained on `rows`.

    Kinds are those of architectures.KINDS, `options` those of plan.OPTIONS, such as `lr`, `batch` and `rule`. `reads`
    and `writes` name places of the rows; needed where there are several. Training sees `samples` rows, by default each
    at least once; one row in a hundred, and not below the least of 1,024 and a tenth of them, is kept out, and the
    card's reference figures come from those. Where they are bad, the card's training["notes"] say so: an L0 off by more
    than a tenth, or an FVU of one or more. The same seed gives the same weights.

    With `folder`, the state is kept there every minute and at an interruption, and the same call goes on from it
    exactly. `progress(stage, done, of)` is told how well it does. Raises InputError for settings that cannot be, for
    fewer rows than latents, and where training diverges.
    """
    plan = planned(rows, latents, k, kind, (reads, writes), samples, seed, options)
    units, first = _looked_at(rows, plan)
    step = _stepper(plan, *first, device)
    quiet = torch.zeros(latents, dtype=torch.long)
    done, seconds = 0, 0.0
    place = Path(folder) if folder is not None else None
    if place is not None and (state := kept(place, plan.told())) is not None:
        tensors, facts = state
        quiet = tensors.pop("quiet")
        step.restore(tensors)
        done, seconds = int(facts["step"]), float(facts["seconds"])
    seconds += _train(rows, plan, step, units, quiet, done, place, progress, device, seconds)
    return _finished(rows, plan, step, units, quiet, seconds)


def _looked_at(rows: Rows, plan: Plan) -> tuple[tuple[Units, Units], tuple[dict[str, Tensor], float]]:
    """Units of what is read and written, first weights, and the mean squared length of what is written."""
    x, y = (torch.cat(parts) for parts in zip(*_some(rows, plan), strict=True))
    units = units_of(x, plan.reads), units_of(y, plan.writes)
    x, y = units[0].inside(x), units[1].inside(y)
    generator = torch.Generator().manual_seed(plan.seed)
    where = (plan.reads, plan.writes)
    weights = first_weights(kind_named(plan.kind), plan.rule, plan.latents, plan.k, x, y, where, generator)
    return units, (weights, float(y.double().square().sum(1).mean()))


def _stepper(plan: Plan, weights: dict[str, Tensor], variance: float, device: str) -> Step:
    """The sparse step where it can be had and is no slower, else the dense one. Both mean the same."""
    weights = {name: tensor.to(device) for name, tensor in weights.items()}
    later, options = kind_named(plan.kind).route == "later", plan.options
    sparse = plan.rule in SPARSE and len(plan.writes) == 1 and "skip" not in weights and plan.k == int(plan.k)
    if sparse and plan.latents >= SPARSE_FROM and not options["dense"]:
        nested = options["prefixes"] if plan.rule == "matryoshka" else ()
        how = Options(nested, int(options["dead_after"]), int(options["aux_k"]), options["aux"])
        rule: Any = "topk" if plan.rule == "topk" else "batchtopk"
        return SparseStep(**weights, k=int(plan.k), rule=rule, options=how)
    blocks = None
    if later:
        read, write = masks(plan.latents, plan.reads, plan.writes)
        blocks = (read.to(device), write.to(device))
    return DenseStep(plan.rule, weights, plan.k, variance, plan.steps, options, spans(plan.writes), blocks)


def _stream(rows: Rows, plan: Plan, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What is read and written, batch by batch without end, from the `start`th on. Each pass has the same order, so
    that its last batches are never seen."""
    where = start % plan.in_pass
    while True:
        for number, values in enumerate(rows.batches(plan.batch, seed=plan.seed, skip=where), where):
            if number == plan.in_pass:
                break
            yield _ends(values, plan)
        where = 0


def _ends(values: dict[str, Tensor], plan: Plan) -> tuple[Tensor, Tensor]:
    x = concatenated(values, tuple(place.site for place in plan.reads))
    same = plan.reads == plan.writes
    return x, x if same else concatenated(values, tuple(place.site for place in plan.writes))


def _train(
    rows: Rows, plan: Plan, step: Step, units: tuple[Units, Units], quiet: Tensor, done: int, folder: Path | None,
    progress: Progress | None, device: str, before: float,
) -> float:  # fmt: skip
    """Make the steps that are left; gives the seconds it took."""
    inside, outside = (unit.to(device) for unit in units)
    started = last = time.perf_counter()

    def checkpoint(at: int) -> None:
        if folder is not None:
            facts = {"step": at, "seconds": before + time.perf_counter() - started}
            keep(folder, {**step.state(), "quiet": quiet}, plan.told(), facts)

    with interruptions() as heard:
        try:
            for x, y in _stream(rows, plan, done) if done < plan.steps else ():
                report = _step(step, inside.inside(x.to(device)), outside.inside(y.to(device)), plan, done)
                done += 1
                quiet += len(x)
                quiet[report.fired.cpu() > 0] = 0
                if progress is not None:
                    told = f"FVU {report.fvu:.3f}, L0 {report.l0:.1f}, {int((quiet >= _silence(plan)).sum()):,} dead"
                    progress(told, done, plan.steps)
                if heard:
                    raise KeyboardInterrupt
                if time.perf_counter() - last > KEEP_EVERY:
                    checkpoint(done)
                    last = time.perf_counter()
                if done == plan.steps:
                    break
        except KeyboardInterrupt:
            checkpoint(done)
            raise KeyboardInterrupt(
                f"Stopped after step {done:,} of {plan.steps:,}. "
                + (
                    f"The same call with {str(folder)!r} goes on from there."
                    if folder
                    else "Without a folder, it is lost."
                )
            ) from None
    checkpoint(done)
    return time.perf_counter() - started


def _step(step: Step, x: Tensor, y: Tensor, plan: Plan, done: int) -> StepReport:
    try:
        report: StepReport = step.step(x, y, plan.lr(done))
        if math.isfinite(report.loss):
            return report
    except InputError:  # the sparse step refuses by itself
        pass
    raise InputError(
        f"The loss is not finite at step {done + 1:,} of {plan.steps:,}; give a smaller lr than "
        f"{plan.options['lr']:.1e}, and see whether the rows hold very large values."
    )


def _silence(plan: Plan) -> float:
    return min(float(plan.options["dead_after"]), plan.samples)


def _finished(
    rows: Rows, plan: Plan, step: Step, units: tuple[Units, Units], quiet: Tensor, seconds: float
) -> Dictionary:
    """The dictionary that a training ends with, and its card."""
    weights = {name: tensor.cpu() for name, tensor in step.weights().items()}
    if RULES[plan.rule].activation == "jumprelu":
        before = weights.get("log_threshold", torch.zeros(plan.latents))
        weights["log_threshold"] = before + math.log(_threshold(rows, plan, weights, before.exp(), units[0]))
    if plan.rule in ("relu", "gated"):
        _calibrate(rows, plan, weights, units[0])
    if plan.rule == "relu" and plan.options["refit"]:
        _unshrink(rows, plan, weights, units)
    found = folded(weights, *units)
    extra: dict[str, Tensor] = {
        name: found.pop(name) for name in ("threshold", "scale", "magnitude_bias") if name in found
    }
    whole = Dictionary(plan.kind, RULES[plan.rule].activation, found, round(plan.k), extra)
    dead = int((quiet >= _silence(plan)).sum())
    return whole.but(card=_card(rows, plan, whole, dead, seconds))


def _unshrink(rows: Rows, plan: Plan, weights: dict[str, Tensor], units: tuple[Units, Units]) -> None:
    """Scale each latent by its gain, on its encoder: what fires stays, and decoder rows keep their size. One row in
    five is not used to find the gains, and they are kept only where they lower the error of those."""
    found: tuple[list[Codes], list[Codes]] = ([], [])
    left: tuple[list[Tensor], list[Tensor]] = ([], [])
    for number, (x, y) in enumerate(_some(rows, plan)):
        x, y = units[0].inside(x), units[1].inside(y)
        apart = (torch.arange(len(x)) + number) % 5 == 0
        for part, picked in enumerate((~apart, apart)):
            found[part].append(Codes.of(linear(weights, x[picked]).relu()))
            left[part].append(y[picked] - made(weights, torch.zeros(int(picked.sum()), plan.latents), x[picked]))
    fitted, tested = ((Codes.joined(codes), torch.cat(parts)) for codes, parts in zip(found, left, strict=True))
    by = gains(fitted[0], weights["decoder"], fitted[1])
    if lowers(by, tested[0], weights["decoder"], tested[1]):
        weights["encoder"], weights["encoder_bias"] = weights["encoder"] * by[:, None], weights["encoder_bias"] * by


def _calibrate(rows: Rows, plan: Plan, weights: dict[str, Tensor], units: Units) -> None:
    """Shift the biases of relu or of a gate, all by the same number, so that k latents a row fire on average: steering
    the penalty comes near only in a long training."""
    least = torch.zeros(plan.latents)  # over which gates are open and magnitudes above zero
    silent = least
    if plan.rule == "gated":
        silent = weights["encoder_bias"] - weights["magnitude"] * (-weights["log_scale"]).exp()
        least = silent.clamp(min=0)
    bound = {**weights, "encoder_bias": weights["encoder_bias"] - least}
    level = _level(rows, plan, bound, units)
    weights["encoder_bias"] = bound["encoder_bias"] - level
    if plan.rule == "gated":  # magnitudes must not be zero where the gate is open
        weights["magnitude"] = weights["magnitude"] + weights["log_scale"].exp() * (silent - least - level).relu()


def _threshold(rows: Rows, plan: Plan, weights: dict[str, Tensor], latents: Tensor, units: Units) -> float:
    """How many times their thresholds pre-activations must be, for k latents a row to fire on average: the same number
    for all latents."""
    scaled = {name: weights[name] / latents.view(-1, *[1] * (weights[name].ndim - 1)) for name in _READS}
    level = _level(rows, plan, scaled, units, 0.0)
    return level if level > 0 else 1.0


def _level(rows: Rows, plan: Plan, weights: dict[str, Tensor], units: Units, least: float = -math.inf) -> float:
    """The number that k pre-activations a row exceed on average, of those above `least`; from the first rows."""
    rows_in = torch.cat([x for x, _ in _some(rows, plan)])
    count, best = round(plan.k * len(rows_in)), torch.zeros(0)
    for part in units.inside(rows_in).split(max(PIECE // plan.latents, 1)):
        values = linear(weights, part).flatten()
        best = torch.cat([best, values[values > least]])
        best = best.topk(min(count + 1, len(best)), sorted=False).values
        least = float(best.min()) if len(best) > count else least
    return float(best.min()) if len(best) else 0.0


def _some(rows: Rows, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """The first batches of training, from which means, scales, gains and thresholds are taken."""
    batches = min(plan.in_pass, math.ceil(_most_rows(plan) / plan.batch))
    return itertools.islice(_stream(rows, plan, 0), batches)


def _most_rows(plan: Plan) -> int:
    """How many rows those are, at most."""
    return max(min(LOOKED_AT, (1 << 25) // sum(place.width for place in (*plan.reads, *plan.writes))), 256)


def _card(rows: Rows, plan: Plan, whole: Dictionary, dead: int, seconds: float) -> Card:
    from .. import __version__

    options = {name: value for name, value in plan.options.items() if name not in ("rule", "batch", "lr")}
    training = {
        "kind": plan.kind, "rule": plan.rule, "k": plan.k, "latents": plan.latents, "seed": plan.seed,
        "samples": plan.samples, "steps": plan.steps, "batch": plan.batch, "lr": plan.options["lr"],
        "dead": dead, "dead_after": _silence(plan), "seconds": round(seconds, 3), "options": options,
    }  # fmt: skip
    versions = {"cutaway": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    reference = _measured(rows, plan, whole)
    training["notes"] = _notes(reference, plan.k)
    if isinstance(rows, Activations) and (inputs := _probe(rows)) is not None:
        reference["inputs"] = inputs
    network = rows.manifest.get("network", "")
    network = str(network["name"] if isinstance(network, dict) else network)
    return Card(plan.reads, plan.writes, network, reference, dict(rows.manifest), training, versions)


def _notes(reference: dict[str, Any], k: float) -> list[str]:
    """What is bad about a dictionary by its figures on rows that were kept out, in a sentence."""
    l0, unexplained = reference["l0"], reference["fvu"]
    if abs(l0 - k) <= NEAR * k and unexplained < 1:
        return []
    return [
        f"On the {reference['rows']:,} rows kept out, {l0:.3g} latents fire on a row where {k:g} were asked for, and "
        f"the FVU is {unexplained:.3g} (the mean of the rows alone reaches 1); train on more rows, or for more samples."
    ]


def _probe(rows: Activations) -> Any:
    """The inputs of some examples, where they were kept, all alike and few numbers; else None."""
    found: list[Tensor] = []
    for number in range(min(len(rows.examples), PROBE[0])):
        values = list(rows.examples[number].inputs.values())
        if len(values) == 1 and all(values[0].shape == other.shape for other in found):
            found.append(values[0])
    return torch.stack(found).tolist() if found and sum(value.numel() for value in found) <= PROBE[1] else None


def _measured(rows: Rows, plan: Plan, whole: Dictionary) -> dict[str, Any]:
    """L0, FVU and mean length on the batches that training never saw."""
    seen, fired, error, length = 0, 0, 0.0, 0.0
    mean, spread = torch.zeros(whole.out_width, dtype=torch.double), 0.0
    for values in rows.batches(plan.batch, seed=plan.seed, skip=plan.in_pass):
        x, y = _ends(values, plan)
        start = 0
        for codes, again in whole.reconstructions(x):
            part = y[start : start + len(codes)].double()
            start += len(codes)
            fired += len(codes.latents)
            error += float((part - again).square().sum())
            mean, spread = mean + part.sum(0), spread + float(part.square().sum())
        seen, length = seen + len(x), length + float(x.norm(dim=1).sum())
    variance = spread - float((mean / seen).square().sum()) * seen
    return {
        "l0": fired / seen, "fvu": error / variance if variance > 0 else math.nan, "norm": length / seen, "rows": seen,
        "hash": str(rows.manifest.get("hash", "")), "held_out": True,
    }  # fmt: skip
