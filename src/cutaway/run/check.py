"""The self-test of a network: does what is recorded, replayed and edited agree with the network itself?

The oracle is plain PyTorch (plain.py). Values, opened ops and gradients are compared; edits of whole values, rows,
positions and weights; other inputs; many worlds in one batch; edits made live. One run is interrupted in the middle,
and at the end the network, torch and the generators must be what they were (footprint.py). What disagrees or cannot be
compared is named; explanations of such a network are not to be trusted before that is understood.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .compare import Comparison
from .difference import difference
from .footprint import changes, footprint
from .network import Network
from .structure import tensors
from .trace import Trace

TOLERANCE = 1e-5  # relative to the largest number; torch's fused kernels differ by about 1e-6 from their parts


@dataclass(frozen=True)
class Check:
    """Largest relative errors (lower is better): of the recorded output, of a replay of everything, of gradients, of
    edits against plain PyTorch, and of the sums over edges. None where there is nothing to compare.

    `problems` is what cannot be followed or is out of order, `notes` what to know. `found` has the lifted components
    (units, calls) and `expected` what the caller says they are.
    """

    name: str
    parity: float | None
    replay_error: float | None
    gradient_error: float | None
    hook_error: float | None
    edge_error: float | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    expected: dict[str, list[int]] | None = None
    found: dict[str, list[int]] | None = None

    @property
    def errors(self) -> dict[str, float | None]:
        """The figures by what they measure."""
        return {
            "output": self.parity,
            "replay": self.replay_error,
            "gradient": self.gradient_error,
            "edits": self.hook_error,
            "edges": self.edge_error,
        }

    @property
    def verified(self) -> bool:
        """Whether nothing disagrees and nothing happened out of sight."""
        return not self.problems and all(error is None or error <= TOLERANCE for error in self.errors.values())

    @property
    def ok(self) -> bool:
        """Verified, and the components are those expected, where something is expected."""
        return self.verified and (self.expected is None or self.expected == self.found)

    def explained(self) -> Check:
        """The same with a problem in words for components other than those expected, and for every infinite error."""
        said = []
        if self.expected is not None and self.found is not None:
            names = dict.fromkeys([*self.expected, *self.found])
            pairs = [(name, self.found.get(name, "nothing"), self.expected.get(name, "nothing")) for name in names]
            said = [f"{name}: found {got}, expected {wanted}" for name, got, wanted in pairs if got != wanted]
        for what, error in self.errors.items():
            if error is not None and not math.isfinite(error) and not any(what in text for text in self.problems):
                said.append(f"the {what} could not be measured: shapes, dtypes or the number of values differ, or NaN")
        return replace(self, problems=(*self.problems, *(text for text in said if text not in self.problems)))

    def record(self) -> dict[str, Any]:
        """Everything as JSON-able data. An infinite error (other shapes, a missing gradient) is 1e308."""
        keys = ("parity", "replay_error", "gradient_error", "edge_error", "hook_error")
        figures = {key: getattr(self, key) for key in keys}
        figures = {key: 1e308 if error == float("inf") else error for key, error in figures.items()}
        found = {"expected": self.expected, "found": self.found}
        texts = {"problems": list(self.problems), "notes": list(self.notes)}
        return {"name": self.name, "ok": self.ok, **figures, **found, **texts}

    def __str__(self) -> str:
        shown = ", ".join(
            f"{name} {'untested' if error is None else f'{error:.1e}'}" for name, error in self.errors.items()
        )
        lines = [f"{'verified' if self.verified else 'not verified'}: {shown}", *self.problems]
        return "\n  ".join([*lines, *(f"note: {note}" for note in self.notes)])


def check(net: Network, *inputs: Any, edits: int = 3, **kwargs: Any) -> tuple[Check, Trace]:
    """Record `net` on inputs and compare with the plain module; up to `edits` module calls are edited.

    Returns the findings, without those about edges and components, and the recording. Raises InputError and ModelError
    as `record` does. The module is left as it was.
    """
    before = footprint(net.module)
    trace = net.record(*inputs, **kwargs)
    with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the network warns of was said in the recording
        comparison = Comparison(trace)
        if not _as_given(net, (*inputs, *kwargs.values()), trace):
            comparison.problems.append("the network was run on other inputs than those given, padded ones perhaps")
        comparison.run(max(edits, 0))
    left = changes(before, footprint(net.module))
    comparison.problems += [f"the {what} changed while the network was recorded and run" for what in left]
    worst = {field: max(errors, default=None) for field, errors in comparison.errors.items()}
    figures = (worst["parity"], worst["replay_error"], worst["gradient_error"], worst["hook_error"])
    found = Check(net.name, *figures, problems=tuple(comparison.problems), notes=tuple(comparison.notes))
    return found.explained(), trace


def _as_given(net: Network, inputs: Sequence[Any], trace: Trace) -> bool:
    """Whether the run was on the inputs themselves; texts as the tokenizer gives them one by one."""
    if net.processor is not None:
        return True
    wanted: list[Tensor] = []
    for item in inputs:
        texts = [item] if isinstance(item, str) else item
        if net.tokenizer is not None and isinstance(texts, (list, tuple)) and all(isinstance(x, str) for x in texts):
            wanted.append(torch.tensor([net.tokenizer.encode(text) for text in texts]))
        else:
            wanted += tensors(item)
    used = list(tensors((trace.args, trace.kwargs)))
    return difference(used, wanted) == 0
