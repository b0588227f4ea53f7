"""A claim: a statement, a verdict with its reasons, the evidence, and what is needed to repeat it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


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
    """One check behind a verdict."""

    check: str
    passed: bool
    text: str


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

    def to_dict(self) -> dict[str, Any]:
        """The claim as JSON-able data, without tensors."""
        data = asdict(self)
        data.pop("tensors")
        return {"schema": "cutaway.claim/1", **data}

    def __str__(self) -> str:
        lines = [f"{self.verdict.upper()}: {self.statement}"]
        lines += [f"  {'✓' if reason.passed else '✗'} {reason.text}" for reason in self.reasons]
        for item in self.evidence:
            interval = f" [{item.low:.3f}, {item.high:.3f}]" if item.low is not None and item.high is not None else ""
            lines.append(f"  {item.name:<22} {item.value:.3f}{interval}  ({item.better} is better; {item.how})")
        return "\n".join(lines)
