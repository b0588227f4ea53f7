"""Edge sums: is the input of every reader the sum of what the writers on its edges contribute?

An edge is a linear path, so for each reader a constant (every writer at zero) and the contributions of the writers'
slots, each computed alone, must add up to what the reader read in the run. Norms and maxima on the way are frozen at
that run (lift/frozen.py). An edge that is missing, that leads through something that is not linear, or that is counted
twice shows as an error; so does an activation that no writer accounts for, which is set to zero here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import SiteError
from ..lift.frozen import Frozen, reader, variants
from ..run.replay import Plan
from ..run.trace import Trace
from .wiring import Stem, Wiring

if TYPE_CHECKING:
    from ..lift import Block, Lifted, Read

PARTS = 8  # a write of more slots than this is divided into so many groups of them
ROUNDINGS = 4  # rounding errors of a value in half precision that are not called an error of the edges


def edge_error(trace: Trace) -> float | None:
    """The largest relative error over all readers of `edge_errors`; None where nothing was lifted that has edges."""
    return max(edge_errors(trace).values(), default=None)


def edge_errors(trace: Trace) -> dict[str, float]:
    """For each reader's port (`L1.attn.q`, `L0.rnn@3.in`, `logits`), how far the writers' contributions are from it.

    Relative to the largest number that the port read; infinite where the wiring is not linear. What rounding explains
    in a precision below float32 is not counted. Ports that read nothing which depends on the inputs are left out. Of a
    replay with interventions, the recording is checked.
    """
    try:
        lifted: Lifted = trace.lift()
    except SiteError:  # no output depends on an input
        return {}
    return _Sums(lifted).errors()


class _Sums:
    """The frozen wiring of one run and the contributions that have been made."""

    def __init__(self, lifted: Lifted) -> None:
        self.blocks = [*lifted.sources, *lifted.blocks, lifted.output]
        self.flow = lifted.flow
        wanted = {value for block in self.blocks for value in (block.write, *(read.value for read in block.reads))}
        self.frozen = Frozen(self.flow, self.blocks, reader(self.flow), wanted - {-1})
        self.wiring = Wiring(self.flow, self.frozen.held)
        self.made: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def errors(self) -> dict[str, float]:
        """The error of every port that a writer leads to."""
        found: dict[str, float] = {}
        known: dict[tuple[int, bool], float | None] = {}
        seen: set[int] = set()
        for block in self.blocks:
            seen.add(block.write)
            for read in block.reads:
                key = (read.value, read.value == block.write)
                if key not in known:
                    known[key] = self._port(block, read, seen)
                if (error := known[key]) is not None:
                    name = f"{block.name}@{block.step}" if block.step else block.name
                    found[f"{name}.{read.port}" if read.port else name] = error
        return found

    def _port(self, block: Block, read: Read, seen: set[int]) -> float | None:
        writes = self.frozen.writes
        stops = set(writes) - ({block.write} if read.value == block.write else set())
        stored = self.frozen.plan([read.value], stops).stored
        feeds = [value for value in writes if value in stored and value in seen and value in stops]
        if not feeds and read.value not in self.flow.activations:
            return None
        if read.value in self.frozen.bent:
            return float("inf")
        want = self.frozen.values[read.value]
        if not want.numel():
            return 0.0
        stems, merge = self.wiring.divide(read.value, feeds, stops)
        made = [self._contribution(stem) for stem in stems]
        return _error(self._merged(merge, read.value, stems, made), want)

    def _contribution(self, stem: Stem) -> tuple[Tensor, Tensor]:
        """(what a stem gives when its writer is zero, the sum over groups of slots of what each adds alone)."""
        key = (stem.feed, stem.value)
        if key not in self.made:
            zero, parts = self.frozen.apart(stem.feed, stem.value, PARTS)
            self.made[key] = zero, parts.double().sum(0).to(zero.dtype)
        return self.made[key]

    def _merged(self, merge: Plan, value: int, stems: tuple[Stem, ...], made: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The constant and the sum over stems of what each adds to a read."""
        if not stems:
            return self.frozen.run(merge, {})[value].double()
        if len(stems) == 1 and stems[0].value == value:
            return made[0][0].double() + made[0][1].double()
        rows = {
            stem.value: torch.stack([zero + added if row == place else zero for row in range(-1, len(stems))])
            for place, (stem, (zero, added)) in enumerate(zip(stems, made, strict=True))
        }
        out = variants(lambda world: self.frozen.run(merge, world)[value], rows).double()
        return out[0] + (out[1:] - out[0]).sum(0)


def _error(got: Tensor, want: Tensor) -> float:
    scale = float(torch.where(want.isfinite(), want.abs(), 0.0).max()) or 1.0
    apart = torch.where(got == want.double(), 0.0, (got - want.double()).abs())  # both may be infinite
    error = float(apart.nan_to_num(float("inf"), float("inf")).max()) / scale
    coarse = want.is_floating_point() and torch.finfo(want.dtype).bits < 32
    return max(error - ROUNDINGS * torch.finfo(want.dtype).eps, 0.0) if coarse else error
