"""A claim: a statement, a verdict with its reasons, the evidence, and what is needed to repeat it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from ..drawing.figures import claim_plot
from ..drawing.plot import Plot


@dataclass(frozen=True)
class Evidence:
    """One figure: what it is, its interval, which direction is better, and how it was obtained."""

    name: str
    value: float
    low: float | None
    high: float | None
    better: str
    how: str


@dataclass(frozen=True)
class Reason:
    """One check behind a verdict; `counts` is False for a note that the verdict does not depend on."""

    check: str
    passed: bool
    text: str
    counts: bool = True


@dataclass(frozen=True)
class Claim:
    """What `verify` returns: `details` hold what is behind the evidence, `provenance` what it takes to repeat it."""

    statement: str
    verdict: str
    reasons: tuple[Reason, ...]
    evidence: tuple[Evidence, ...]
    circuit: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def figure(self, name: str) -> Evidence:
        """A piece of evidence by name. Raises KeyError with the names there are."""
        for item in self.evidence:
            if item.name == name:
                return item
        raise KeyError(f"no evidence '{name}'; there is {', '.join(item.name for item in self.evidence)}")

    def plot(self) -> Plot:
        """The circuit under its verdict, with its faithfulness curve and the range of its random circuits."""
        return claim_plot(self.to_dict())

    def _repr_html_(self) -> str:
        told = f'<pre style="white-space:pre-wrap">{escape(str(self))}</pre>'
        return self.plot()._repr_html_() + told if self.circuit.get("edges") else told

    def to_dict(self) -> dict[str, Any]:
        """The claim as JSON-able data, without tensors."""
        data = asdict(self)
        data.pop("tensors")
        return {"schema": "cutaway.claim/1", **data}

    def __str__(self) -> str:
        lines = [f"{self.verdict.upper()}: {self.statement}"]
        lines += [f"  {'✓' if row.passed else '✗' if row.counts else '!'} {row.text}" for row in self.reasons]
        for item in self.evidence:
            interval = f" [{item.low:.3f}, {item.high:.3f}]" if item.low is not None and item.high is not None else ""
            lines.append(f"  {item.name:<22} {item.value:.3f}{interval}  ({item.better} is better; {item.how})")
        return "\n".join(lines)
