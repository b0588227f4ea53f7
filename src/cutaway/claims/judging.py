"""From what was measured to evidence, reasons and a verdict. Each check is a function to a `Finding`.

A claim is supported when every check that counts has passed, not supported when one of `REQUIRED` has failed, and
partly supported otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..attribution.repair import Repair
from .claim import Evidence, Reason
from .curves import Curve, spread
from .hypotheses import Test
from .measured import Measured
from .stability import Stability
from .statistics import rank_p, sign_p
from .untrained import Control

FAITHFUL, COMPLETE, NEEDED, SIGNIFICANT, STABLE, REPAIRED = 0.3, 0.5, 0.5, 0.05, 0.5, 0.3
SEEN = 0.01  # the level of the sign test on pairs that the search saw: it would have found other pairs of less use
REQUIRED = ("behaves", "trained", "faithful", "beats chance")


@dataclass(frozen=True)
class Finding:
    """What one check adds to a claim."""

    evidence: tuple[Evidence, ...] = ()
    reasons: tuple[Reason, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


def verdict(reasons: Iterable[Reason]) -> str:
    """The verdict that follows from the reasons."""
    failed = {reason.check for reason in reasons if reason.counts and not reason.passed}
    if failed & set(REQUIRED):
        return "not supported"
    return "partly supported" if failed else "supported"


def behaves(found: Measured, held_out: bool) -> Finding:
    """Do the examples show the behaviour one by one, or is its mean an accident of a few?"""
    level = SIGNIFICANT if held_out else SEEN
    p, share = sign_p(found.wins, found.n), found.wins / found.n
    text = f"{found.wins} of {found.n} examples show the behaviour; sign test p = {p:.2g}"
    least = math.ceil(math.log2(1 / level))
    if found.n < least:
        text += f" (too few examples: {least} or more are needed)"
    how = f"share of {found.n} examples whose metric is higher clean than ablated; sign test p = {p:.2g}"
    if not held_out:
        how += f", to be below {SEEN} on pairs that the search saw"
    evidence = Evidence("behaviour", share, None, None, "higher", how)
    return Finding((evidence,), (Reason("behaves", p <= level, text),), {"sign_p": p})


def trained(control: Control, open_question: bool) -> Finding:
    """Is the behaviour one that training put there? An `open_question` for a distance from the network's own output,
    and for very few examples, which fail the sign test."""
    if control.p is None:
        text = f"not shown to come from training: {control.how}"
        return Finding((), (Reason("trained", False, text, not open_question),))
    finite = [value for value in control.values if math.isfinite(value)]
    best = f"at most {max(finite):.1f}" if finite else "none"
    text = (
        f"examples differ by {control.observed:.1f} standard deviations; with weights in random order by {best}; "
        f"p = {control.p:.3f}"
    )
    how = f"share of {control.how} where clean and corrupted differ by as many standard deviations, +1 corrected"
    details = {"observed": control.observed, "values": finite, "how": control.how}
    evidence = Evidence("untrained p", control.p, None, None, "lower", how)
    return Finding((evidence,), (Reason("trained", control.p <= SIGNIFICANT, text),), {"untrained": details})


def faithful(found: Measured) -> Finding:
    """Does the circuit alone keep the behaviour, and do so for sure?"""
    value, low, high = found.faithfulness
    evidence = Evidence(
        "faithfulness", value, low, high, "closer to 1", f"{_outside(found)} outside the circuit; {found.boot}"
    )
    text = f"the circuit alone keeps {value:.0%} of the behaviour{_interval(found)}"
    details = {
        "per_example": found.per_example.tolist(), "examples": spread(found.per_example),
        "examples_needed": examples_needed(found),
    }  # fmt: skip
    return Finding((evidence,), (Reason("faithful", holds(found), text),), details)


def holds(found: Measured) -> bool:
    """Faithfulness within 0.3 of 1, and its interval within 0.6."""
    value, low, high = found.faithfulness
    within = low is not None and high is not None and low >= 1 - 2 * FAITHFUL and high <= 1 + 2 * FAITHFUL
    return abs(1 - value) <= FAITHFUL and within


def examples_needed(found: Measured) -> int | None:
    """How many examples like these would make the interval of faithfulness no wider than 0.3 to either side, as widths
    go with the root of their number; None for one example."""
    _, low, high = found.faithfulness
    if low is None or high is None:
        return None
    return max(5, math.ceil(found.n * ((high - low) / (2 * FAITHFUL)) ** 2))


def _interval(found: Measured) -> str:
    _, low, high = found.faithfulness
    if low is None or high is None:
        return " (one example: no interval, give 5 or more)"
    needed = examples_needed(found)
    few = f"; too few examples for that, about {needed} are needed" if needed and needed > found.n else ""
    return f" [{low:.0%}, {high:.0%}]{few}"


def _outside(found: Measured) -> str:
    kind = found.graph.baseline["kind"]
    return {"counterfactual": "corrupted values"}.get(kind, f"{kind} ablation")


def beats_chance(found: Measured, null: list[float], random: int) -> Finding:
    """Are random circuits of the same size as good?"""
    value = found.faithfulness[0]
    p = rank_p(-abs(1 - value), [-abs(1 - other) for other in null])
    low, high = np.quantile(null, [0.025, 0.975])
    evidence = (
        Evidence(
            "null faithfulness", float(np.mean(null)), float(low), float(high), "lower",
            f"mean and central 95 % of {random} random connected circuits of the same size",
        ),
        Evidence(
            "null p", p, None, None, "lower",
            f"share of {random} random circuits at least as close to faithfulness 1, +1 corrected",
        ),
    )  # fmt: skip
    mean = abs(round(float(np.mean(null)), 3))
    text = f"random circuits of its size keep {mean:.0%} on average; p = {p:.3f}"
    return Finding(evidence, (Reason("beats chance", p <= SIGNIFICANT, text),), {"null": null})


def complete(found: Measured) -> Finding:
    """Is the behaviour gone without the circuit?"""
    value, low, high = found.completeness
    evidence = Evidence(
        "completeness", value, low, high, "higher", f"{_outside(found)} in the circuit alone; {found.boot}"
    )
    reason = Reason("complete", value >= COMPLETE, f"corrupting it removes {value:.0%} of the behaviour")
    return Finding((evidence,), (reason,))


def minimal(needs: dict[str, float]) -> Finding:
    """Is each part needed?"""
    value = float(np.mean([abs(need) > 0.01 for need in needs.values()])) if needs else 0.0
    how = f"share of {len(needs)} parts whose removal moves faithfulness by more than 0.01"
    evidence = Evidence("minimality", value, None, None, "higher", how)
    reason = Reason("minimal", value >= NEEDED, f"{value:.0%} of its parts are needed")
    return Finding((evidence,), (reason,), {"needs": needs})


def tested(tests: Sequence[Test]) -> Finding:
    """The hypothesis tests of an ideal circuit. They are strict, so they inform and do not decide."""
    evidence = tuple(
        Evidence(
            f"{test.name} p", test.p, None, None, "higher",
            f"null: {test.null}; n = {test.n}; {test.correction}; {test.source}",
        )
        for test in tests
    )  # fmt: skip
    return Finding(evidence, (), {"tests": [asdict(test) for test in tests]})


def elsewhere(name: str, found: Measured) -> Finding:
    """Does the circuit carry the behaviour on another set of pairs?"""
    value, low, high = found.faithfulness
    how = f"{found.n} pairs of another set, {found.metric.name}; {_outside(found)} outside; {found.boot}"
    evidence = Evidence(f"faithfulness on {name}", value, low, high, "closer to 1", how)
    text = f"on {name} it keeps {value:.0%} of the behaviour{_interval(found)}"
    return Finding((evidence,), (Reason("elsewhere", holds(found), text),))


def curved(curve: Curve) -> Finding:
    """The areas under the curve of faithfulness."""
    sizes = f"circuits of {curve.rows[0]['share']:.1%} to {curve.rows[-1]['share']:.0%} of edges"
    how = f"{sizes}, {curve.facts['circuits']}, trapezoidal over the share; {curve.facts['interval'] or 'no interval'}"
    areas = (
        ("CPR", curve.cpr, "higher", "area under faithfulness"),
        ("CMD", curve.cmd, "lower", "area under |1 - faithfulness|"),
    )
    evidence = tuple(Evidence(name, *found, better, f"{what}; {how}") for name, found, better, what in areas if found)
    return Finding(evidence, (), {"curve": curve.to_dict()})


def stable(found: Stability) -> Finding:
    """Does the search find the same parts on other draws of examples?"""
    facts = found.facts
    how = (
        f"mean Jaccard and central 95 % of pairs of {facts['draws']} bootstrap resamples of {facts['examples']} "
        f"examples, the strongest {facts['size']} by {facts['method']}; {found.chance:.3f} by chance"
    )
    evidence = Evidence("stability", found.jaccard, found.low, found.high, "higher", how)
    text = f"circuits of resampled examples share {found.jaccard:.0%} of their parts"
    details = {"chance": found.chance, "inclusion": found.inclusion, **facts}
    return Finding((evidence,), (Reason("stable", found.jaccard >= STABLE, text, False),), {"stability": details})


def repaired(rows: Sequence[Repair]) -> Finding:
    """Do later parts make up for the ablation of the circuit's? Then effects of single parts say too little."""
    known = [row for row in rows if row.share is not None]
    if not known:
        return Finding()
    most = max(known, key=lambda row: row.share or 0.0)
    share = most.share or 0.0
    of = f"{most.node}, of {len(known)} nodes in the circuit"
    how = f"largest share of a node's direct effect that later parts make up for, at {of}"
    evidence = Evidence("self-repair", share, None, None, "lower", how)
    text = f"later parts make up for {share:.0%} of {most.node}'s direct effect: effects of single parts mislead"
    reasons = (Reason("self-repair", False, text, False),) if share > REPAIRED else ()
    return Finding((evidence,), reasons, {"repair": [asdict(row) for row in rows]})


def others(rows: Sequence[dict[str, Any]], asked: int) -> Finding:
    """Circuits that do as well and share few parts."""
    if not rows:
        text = f"no other circuit that does as well was found ({asked} asked for)"
        return Finding((), (Reason("alternatives", True, text, False),), {"alternatives": []})
    evidence = tuple(
        Evidence(
            f"alternative {place} overlap", row["overlap"], None, None, "higher",
            f"Jaccard with a circuit of {row['size']} edges found without this one's, faithfulness "
            f"{row['faithfulness']:.3f}",
        )
        for place, row in enumerate(rows, 1)
    )  # fmt: skip
    least = min(row["overlap"] for row in rows)
    text = f"others that do as well: {len(rows)}; the most different shares {least:.0%} of its parts with this one"
    return Finding(evidence, (Reason("alternatives", False, text, False),), {"alternatives": list(rows)})
