"""`patch`: change a value inside a run and see what comes of it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InputError
from ..report import terminal
from . import store
from .looking import NOTHING, Dictionaries, Model
from .verb import Argument, Result, near, verb

if TYPE_CHECKING:
    from ..run.interventions import Intervention
    from ..run.trace import Trace
    from .subject import Examples

EDITS = ("zero", "mean", "resample", "patch", "scale=FACTOR")


@verb("patch", show=terminal.patched, chapter="Explain")
def patch(
    model: Model,
    site: Annotated[list[str], Argument("Where to edit, as in L1.attn.h2 or L0.mlp.act[neuron=3]; may be repeated.")],
    edit: Annotated[str, Argument(f"What to do there: {', '.join(EDITS)}.")],
    clean: Annotated[list[str], Argument("The input that is edited; may be repeated. Organisms need none.")] = NOTHING,
    corrupted: Annotated[list[str], Argument("Where `patch` and `resample` take values from.")] = NOTHING,
    correct: Annotated[list[str], Argument("The right answer, one token; with --wrong it is measured.")] = NOTHING,
    wrong: Annotated[list[str], Argument("The other answer, one token.")] = NOTHING,
    dictionary: Dictionaries = NOTHING,
    pairs: Annotated[int, Argument("How many pairs of an organism to use.", least=1)] = 16,
    seed: Annotated[int, Argument("Which pairs to draw, and which rows `resample` takes.", least=0)] = 0,
) -> Result:
    """Edit a value inside a run: what the edit changed there, and what that changes in the answer."""
    from .subject import behaving, drawn, facts, open_model, organism_of, suited_threads, top
    from .texts import Texts

    net = open_model(model, dictionary)
    own = Texts(clean, corrupted, correct, wrong)
    examples = own.examples(net) if clean else None
    if examples is None:
        if organism_of(net) is None:
            raise InputError(f"Nothing to run '{net.name}' on; give --clean, and --corrupted for the edit 'patch'.")
        examples = drawn(behaving(net.name), pairs, seed)
    with suited_threads(net):
        before = net.record(examples.clean)
        other = net.record(examples.corrupted) if examples.corrupted is not None else None
        after = before.replay(*[_edit(edit, place, other, seed) for place in site])
        measured = _measured(examples, before, after, other)
    same = bool((before.logits == after.logits).all())
    return store.plain(
        {
            "model": model,
            "edit": edit,
            "receipt": [asdict(fired) for fired in after.receipt],
            "live": after.live,
            "metric": measured,
            "top_before": top(net, before.logits[:1])[0] if before.logits.ndim in (2, 3) else [],
            "top_after": top(net, after.logits[:1])[0] if after.logits.ndim in (2, 3) else [],
            "largest_output_change": float((after.logits - before.logits).abs().max()),
            "output_unchanged": same,
            "examples": len(examples.clean),
            "facts": facts(net),
        }
    )


def _edit(edit: str, place: str, other: Trace | None, seed: int) -> Intervention:
    """The intervention that a word on the command line means."""
    from ..run import interventions as make

    kind, equals, factor = edit.partition("=")
    if kind == "scale":
        try:
            number = float(factor)
        except ValueError:
            number = math.nan
        if not abs(number) < 1e30:
            raise InputError(f"'{edit}' has no factor; write a finite number, as in scale=0.5.")
        return make.scale(place, number)
    if equals or kind not in EDITS:
        raise InputError(f"There is no edit '{edit}'{near(kind, EDITS)}")
    if kind == "patch":
        if other is None:
            raise InputError("The edit 'patch' takes values from another run; give --corrupted.")
        return make.patch(place, other)
    if kind == "resample":
        return make.resample(place, other, seed)
    return make.zero(place) if kind == "zero" else make.mean(place, other)


def _measured(examples: Examples, before: Trace, after: Trace, other: Trace | None) -> dict[str, Any] | None:
    """The metric before and after, and the share of the behaviour that the edit took away."""
    if examples.correct is None or examples.wrong is None:
        return None
    metric = examples.metric(before)
    values = [float(metric(run.logits, run.net).detach().mean()) for run in (before, after)]
    reference = float(metric(other.logits, other.net).detach().mean()) if other is not None else None
    gap = values[0] - reference if reference is not None else None
    lost = (values[0] - values[1]) / gap if gap else None
    return {"name": metric.name, "before": values[0], "after": values[1], "corrupted": reference, "lost": lost}
