"""Why latents reach no target of an attribution graph: the blocks in the way, which no dictionary stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from ..lift import Lifted
from ..lift.ops import ELEMENTWISE, SOFTMAX, sort_name
from .freezing import moved
from .replacement import Replacement, Stand


def notes(model: Replacement, totals: Sequence[Tensor]) -> list[str]:
    """A sentence for each dictionary of which no latent has an effect on the targets; `totals` are its latents' total
    effects."""
    found = []
    for stand, total in zip(model.stands, totals, strict=True):
        if bool(total.any()):
            continue
        told = f"the dictionary that writes '{stand.writes[0].name}'"
        if not len(total):
            found.append(f"No latent of {told} fires in this run.")
        elif names := obstacles(model, stand):
            many = len(names) > 1
            found.append(
                f"No latent of {told} reaches the targets linearly: the block{'s' * many} {', '.join(names)}, without "
                f"{'dictionaries' if many else 'a dictionary'}, {'are' if many else 'is'} in the way; give "
                f"{'transcoders for them' if many else 'a transcoder for it'}, or take a place after."
            )
        else:
            found.append(f"No latent of {told} reaches the targets: those that fire have no path to them.")
    return found


def obstacles(model: Replacement, stand: Stand) -> list[str]:
    """The names of the components that every path from a dictionary to the output passes; where there is none such,
    of all those that paths pass."""
    starts, goal = {spot.value for spot in stand.writes}, model.output.value
    every, passed = _components(model), _reached(model, starts, ())
    if goal not in passed:
        return []
    alone = [value for value in every if value in passed and goal not in _reached(model, starts, {value})]
    ends = {spot.value for spot in model.parts}
    return [every[value] for value in alone or [value for value in every if value in passed & ends]]


def _components(model: Replacement) -> dict[int, str]:
    """What is neither held nor written by a dictionary, by value, in order."""
    lifted: Lifted = model.trace.lift()
    flow = model.frozen.flow
    written = {spot.value for spot in model.written}
    found: dict[int, str] = {}
    for block in lifted.blocks:
        if block.write >= 0 and block.kind not in ("attention", "norm"):
            found[moved(model.trace, model.tape, lifted, block.write)] = block.name
    found |= {spot.value: spot.name for spot in model.parts}

    def held(value: int) -> bool:
        op = flow.maker(value)
        return op is not None and flow.linear[op.index] and sort_name(op) in ELEMENTWISE | SOFTMAX

    return {value: name for value, name in found.items() if value not in written and not held(value)}


def _reached(model: Replacement, starts: Iterable[int], without: Iterable[int]) -> set[int]:
    """The values that some lead to, by ways that avoid others, patterns of attention, and scales of norms."""
    flow, stopped = model.frozen.flow, {*without, *model.frozen.held}
    found = set(starts)
    for op in flow.graph.ops:
        if not found.isdisjoint(op.inputs):
            found |= {value for value in op.outputs if value in flow.activations and value not in stopped}
    return found
