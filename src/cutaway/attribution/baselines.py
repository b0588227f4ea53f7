"""Ablation baselines: what the writers outside a circuit carry instead of their own values.

"counterfactual": the values of the corrupted run (Vig et al. 2020, arXiv:2004.12265). "zero": nothing. "mean": the mean
over examples, position by position (Wang et al. 2022, arXiv:2211.00593). "resample": the values of another example,
drawn once for all writers (Chan et al. 2022, causal scrubbing). Constants of your own, such as the optimal ones of
`cutaway.find_circuit(search="edge-pruning")` (Li, Janson 2024, arXiv:2409.09951), are given by writer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..lift import Block
from ..lift.flow import Flow

Baseline = str | Mapping[str, Tensor]
Values = Mapping[int, Tensor]
# From the reference's value to what an ablated write carries. These two are given examples along the first axis, and an
# order of other examples.
_OF_EXAMPLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda value, order: value.mean(0, keepdim=True).expand_as(value),
    "resample": lambda value, order: value[order],
}
_KINDS: dict[str, Callable[[Tensor], Tensor]] = {"counterfactual": torch.clone, "zero": torch.zeros_like}
NAMES = (*_KINDS, *_OF_EXAMPLES)


def fill(
    baseline: Baseline,
    writes: Mapping[int, Block],
    clean: Values,
    reference: Values | None,
    flow: Flow,
    seed: int,
) -> tuple[dict[int, Tensor], dict[str, Any]]:
    """(what each write carries when it is ablated, what was done as JSON-able facts).

    `reference` are the corrupted run's values; the clean run's are taken where there is none. Raises InputError for an
    unknown baseline, a counterfactual without a corrupted run, a mean or resample of too few examples, and constants
    that do not fit.
    """
    if not isinstance(baseline, (str, Mapping)):
        raise InputError(f"A baseline is {', '.join(NAMES)} or a dict of constants by writer, not {baseline!r}.")
    if not isinstance(baseline, str):
        return _given(baseline, writes, clean), {"kind": "optimal" if baseline else "zero", "from": "constants given"}
    if baseline not in NAMES:
        raise InputError(f"There is no baseline '{baseline}'; choose {', '.join(NAMES)}, or give constants by writer.")
    if reference is None and baseline == "counterfactual":
        raise InputError(
            "A counterfactual baseline needs the corrupted run; record it, or choose baseline='zero' or 'mean'."
        )
    source = reference if reference is not None else clean
    if baseline in _KINDS:
        made = {value: _KINDS[baseline](source[value]) for value in writes}
    else:
        if flow.batch < 2:
            raise InputError(f"The baseline '{baseline}' needs other examples and there is one; give 2 or more.")
        order = _other_examples(flow.batch, seed)
        made = {
            value: _by_example(source[value], block, flow, lambda rows: _OF_EXAMPLES[baseline](rows, order))
            for value, block in writes.items()
        }
    facts: dict[str, Any] = {"kind": baseline}
    if baseline != "zero":
        facts["from"] = "corrupted run" if reference is not None else "clean run"
    if baseline == "resample":
        facts["seed"] = seed
    return made, facts


def _by_example(value: Tensor, block: Block, flow: Flow, make: Callable[[Tensor], Tensor]) -> Tensor:
    """What `make` gives for a write with its examples along the first axis, put back where they were.

    A source that is the same for all examples stays as it is.
    """
    batch, first = flow.batch, block.slots.first
    major = flow.time_major and block.kind != "attention"
    if major and value.ndim == 3 and value.shape[1] == batch:
        return make(value.movedim(1, 0)).movedim(0, 1).contiguous()
    size = value.shape[first] if value.ndim else 0
    if not size or (not block.reads and size != batch):
        return value.clone()
    if size % batch:
        raise InputError(
            f"'{place_name(block)}' has {size} rows for {batch} examples, so no row can be taken from another "
            "example; choose baseline='zero' or 'counterfactual'."
        )
    # Positions or windows may be folded in with the examples, inside them or, where positions come first, outside.
    inner, place = ((-1, batch), first + 1) if major and size > batch else ((batch, -1), first)
    rows = value.unflatten(first, inner).movedim(place, 0)
    return make(rows).movedim(0, place).flatten(first, first + 1).contiguous()


def place_name(block: Block) -> str:
    """What a block's constants are called: its name, and its step where it has several."""
    return f"{block.name}@{block.step}" if block.step else block.name


def _given(constants: Mapping[str, Tensor], writes: Mapping[int, Block], clean: Values) -> dict[int, Tensor]:
    """Constants by the names of `place_name`, spread over examples and positions; zero where there is none."""
    names = {place_name(block): value for value, block in writes.items()}
    if strange := [name for name in constants if name not in names]:
        some = ", ".join(list(names)[:8])
        raise InputError(f"There is no writer '{strange[0]}' to give a constant; the first writers are {some}.")
    made = {}
    for name, value in names.items():
        constant = constants.get(name, torch.zeros(()))
        try:
            made[value] = constant.detach().to(clean[value]).expand_as(clean[value])
        except RuntimeError:
            raise InputError(
                f"The constant of '{name}' has shape {tuple(constant.shape)}, which does not fit its values "
                f"{tuple(clean[value].shape)}."
            ) from None
    return made


def _other_examples(batch: int, seed: int) -> Tensor:
    """[batch]: for each example another one: the next of a random cycle."""
    cycle = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(-1)
    return order
