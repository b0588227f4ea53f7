"""The settings of a training: two numbers are given, the others follow from them and from how many rows there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError, nearest
from .architectures import KINDS, kind_named, placed
from .card import Place
from .objectives import RULES
from .rows import Rows

# Options with their defaults; None follows from other settings (see `planned`). Shares are of all steps.
OPTIONS: dict[str, Any] = {
    "rule": None,  # which latents fire, where a kind leaves that open
    "batch": None,  # rows a step
    "lr": None,  # Adam's
    "warmup": 0.05,  # share in which the learning rate rises to it, at most 1,000 steps
    "decay": 0.2,  # share in which it falls to zero, at the end
    "dead_after": None,  # rows after which a latent that has not fired counts as dead
    "aux": 1 / 32,  # weight of the dead latents' own reconstruction (AuxK)
    "aux_k": None,  # dead latents that take part in it for a row
    "wake": 0.1,  # weight of the pre-activation loss of dead latents, for rules without AuxK
    "penalty": 0.1,  # first weight of the sparsity penalty, which is then steered so that L0 goes to k
    "steering": 40.0,  # how fast: what its logarithm would change by in all steps, were L0 off by a factor of e
    "firmness": 1.0,  # and at once
    "approach": 0.2,  # share in which the aimed L0 goes from where it starts to k
    "first_l0": None,  # where that is: half of the latents, and k where thresholds are set to that
    "bandwidth": 1.0,  # of JumpReLU's straight-through estimate, in units in which rows have length sqrt(d)
    "refit": True,  # undo L1's shrinkage at the end, where the rule is relu
    "prefixes": None,  # how many latents each nested dictionary has (Matryoshka)
    "dense": False,  # the plain step, where there is a faster one
}
PREFIXES = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1)  # Bussmann et al. 2025
HELD_OUT = 0.01  # share of the rows that is kept out ...
LEAST_OUT = (1024, 0.1)  # ... and not below the smaller of this many and this share


@dataclass(frozen=True)
class Plan:
    """All settings. `steps` of `batch` rows; of each pass over the rows the last batches are kept out."""

    kind: str
    latents: int
    k: float
    reads: tuple[Place, ...]
    writes: tuple[Place, ...]
    samples: int
    steps: int
    in_pass: int
    seed: int
    options: Mapping[str, Any]
    data: str

    @property
    def rule(self) -> str:
        """The rule's name."""
        return str(self.options["rule"])

    @property
    def batch(self) -> int:
        """Rows a step."""
        return int(self.options["batch"])

    def lr(self, step: int) -> float:
        """The learning rate of a step: it rises, stays, and falls to zero, all linearly."""
        rise = max(min(self.options["warmup"] * self.steps, 1000.0), 1.0)
        fall = max(self.options["decay"] * self.steps, 1.0)
        return float(self.options["lr"]) * min((step + 1) / rise, (self.steps - step) / fall, 1.0)

    def told(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)


def planned(
    rows: Rows, latents: int, k: float, kind: str, places: tuple[Sequence[str] | None, Sequence[str] | None],
    samples: int | None, seed: int, given: Mapping[str, Any],
) -> Plan:  # fmt: skip
    """The settings, checked and completed. Raises InputError for those that cannot be."""
    chosen = kind_named(kind)
    if strange := [name for name in given if name not in OPTIONS]:
        raise InputError(f"There is no option '{strange[0]}'; the nearest are {nearest(strange[0], OPTIONS)}.")
    options = {**OPTIONS, **given}
    options["rule"] = options["rule"] or chosen.rule
    if options["rule"] not in RULES:
        raise InputError(f"There is no rule '{options['rule']}'; there is {', '.join(RULES)}.")
    _check_counts(latents, k, options["rule"])
    reads, writes = placed(kind, rows.places, *places)
    if chosen.route == "later" and latents < len(reads):
        raise InputError(f"{latents:,} latents are fewer than the {len(reads)} places that each need some; give more.")
    there, width = len(rows), sum(place.width for place in writes)
    if there < latents:
        raise InputError(
            f"There are {there:,} rows for {latents:,} latents; fewer rows than latents can be learnt by heart. "
            "Collect more rows, or ask for fewer latents."
        )
    whole = samples is None
    samples = max(there, min(10 * there, 1000 * latents)) if samples is None else samples
    if not isinstance(samples, int) or samples < latents:
        raise InputError(f"{samples:,} samples are fewer than the {latents:,} latents; train on more.")
    batch = options["batch"] or default_batch(there, samples)
    count = there // batch
    in_pass = count - max(math.ceil(HELD_OUT * count), math.ceil(min(LEAST_OUT[0], LEAST_OUT[1] * there) / batch))
    if in_pass < 1:
        raise InputError(f"A batch of {batch:,} rows leaves none of {there:,} to be kept out; make it smaller.")
    steps = max(round(samples / batch), 1)
    if whole:  # whole passes
        steps = max(round(steps / in_pass), 1) * in_pass
    options |= {"batch": batch, "lr": options["lr"] or 2e-4 * (2**14 / latents) ** 0.5}
    options["dead_after"] = options["dead_after"] or min(max(100 * latents / k, 50 * batch), samples / 4)
    options["aux_k"] = options["aux_k"] or max(width // 2, 1)
    options["first_l0"] = options["first_l0"] or (k if options["rule"] == "jumprelu" else latents / 2)
    options["prefixes"] = _prefixes(options["prefixes"], latents)
    hashed = str(rows.manifest.get("hash", ""))
    data = f"{hashed} {there}"
    return Plan(kind, latents, k, reads, writes, steps * batch, steps, in_pass, seed, options, data)


def default_batch(rows: int, samples: int) -> int:
    """A power of two: large where there are many rows, and small enough for 1,000 steps and twenty batches a pass."""
    most = min(4096, samples / 1000, rows / 20)
    return max(2 ** int(math.log2(max(most, 1))), min(64, rows // 2))


def _check_counts(latents: int, k: float, rule: str) -> None:
    if not isinstance(latents, int) or isinstance(latents, bool) or latents < 1:
        raise InputError(f"latents is {latents!r}; give a whole number of them, such as 2048.")
    if not isinstance(k, int | float) or isinstance(k, bool) or not math.isfinite(k) or k <= 0:
        raise InputError(f"k is {k!r}; give how many latents should fire on a row, such as 32.")
    if k >= latents:
        raise InputError(
            f"k = {k:g} latents of {latents:,} would fire on every row; make k smaller, or latents larger."
        )
    if rule == "topk" and k != round(k):
        raise InputError(f"topk keeps a whole number of latents for each row, not {k:g}; batchtopk can.")


def _prefixes(given: Sequence[int] | None, latents: int) -> list[int]:
    ends = given or sorted({max(round(share * latents), 1) for share in PREFIXES})
    if list(ends) != sorted(set(ends)) or ends[0] < 1 or ends[-1] != latents:
        raise InputError(f"prefixes are {list(ends)}; give rising numbers that end with the {latents:,} latents.")
    return list(ends)


__all__ = ["KINDS", "OPTIONS", "Plan", "default_batch", "planned"]
