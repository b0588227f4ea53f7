"""Which worlds go together: passes over a network, chosen so that little is computed twice or for nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

World = tuple[int, int]

# A pass costs, beside its rows, about as much as this many: the weights go through the processor once whatever the
# number of rows. Measured on GPT-2 small's shape on one and two cores.
_PASS = 20.0
_FARTHEST = 64  # how many different starts one pass may cover


@dataclass(frozen=True)
class Pass:
    """Worlds that run together from one position on. `cost` counts rows × positions; `forwards` the same in units of
    one forward pass of the run; `bytes` is the most it holds in one op."""

    worlds: tuple[World, ...]
    start: int
    cost: float
    forwards: float
    bytes: int


def passes(
    worlds: Sequence[World],
    starts: Sequence[int],
    shares: Sequence[float],
    length: int,
    batch: int,
    numbers: Callable[[int], int],
    memory: int,
) -> list[Pass]:
    """Divide worlds into passes.

    `starts` is each world's first position that differs, `shares` the share of the network after it; a pass computes
    all its worlds from the first of their starts on. `numbers(start)` is how many numbers a world holds, `memory` how
    many bytes a pass may.
    """
    positions = max(length, 1)
    at: dict[int, list[int]] = {}
    for number, start in enumerate(starts):
        at.setdefault(start, []).append(number)
    order = sorted(at)
    weight = [sum(shares[number] for number in at[start]) for start in order]
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(order) + 1):  # the cheapest division of the first `end` starts into runs of neighbours
        found, total = (float("inf"), 0), 0.0
        for first in range(end - 1, max(-1, end - 1 - _FARTHEST), -1):
            total += weight[first]
            cost = best[first][0] + total * batch * (positions - order[first]) + _PASS
            if cost < found[0]:
                found = (cost, first)
        best.append(found)
    cuts, end = [], len(order)
    while end:
        first = best[end][1]
        cuts.append((first, end))
        end = first
    made = []
    for first, end in reversed(cuts):
        start = order[first]
        members = sorted((number for at_start in order[first:end] for number in at[at_start]), key=lambda n: worlds[n])
        each = 4 * numbers(start)
        most = max(1, memory // max(each, 1))
        for begin in range(0, len(members), most):
            chunk = members[begin : begin + most]
            rows = sum(shares[number] for number in chunk) * batch * (positions - start)
            forwards = rows / (batch * positions)
            made.append(Pass(tuple(worlds[n] for n in chunk), start, rows + _PASS, forwards, each * len(chunk)))
    return made
