"""The largest pre-activations of rows, without the table of them all.

Nearly all work of a sparse dictionary is the product of rows and encoder, of which a few numbers in a thousand are
used. So the product is made in a low precision, only to find candidates: rows × latents in pieces, of each piece the
maxima of groups of latents, and of those the best groups. Candidates get their exact values, and the best by these are
the result. It is checked: a row where a latent that is no candidate could belong to the best, judged by the largest
error that candidates showed, is computed again in full precision.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from .codes import Codes
from .products import offsets_of, sampled_products

_PIECE, _ROWS = 1 << 20, 170  # products that are made at once, and rows at least
_MEMBERS = 8  # latents in a group at most
_BIAS = 8  # columns that the bias is spread over in eight bits, so that it does not spoil the weights' scale
_CHUNK = 512  # latents that are brought to eight bits at once
_TOO_MANY = 0.1  # the fraction of rows done again from which another precision is faster
_ROUNDING = {"bfloat16": 2.0**-8, "float32": 2.0**-20}
_EXPECTED = 2.0  # the largest error that is expected of a product, in what errors are proportional to
# Candidates beyond k, in k: enough that errors of the precision rarely leave a row unsure.
_SPARE = {"int8": 0.75, "bfloat16": 0.4, "float32": 0.3}


@dataclass(frozen=True, eq=False)
class Screen:
    """An encoder made ready for approximate products.

    Latent `member * groups + group` is in `group`; products of a group times `scale[group]`, times the row's unit, are
    pre-activations. Latents that only fill up the last groups have a bias that keeps them last.
    """

    precision: str
    table: Tensor  # [members * groups, columns]
    bias: Float[Tensor, "filled"]
    scale: Float[Tensor, "groups"]
    reach: float  # what the bias columns of a row hold
    length: float  # of the longest of the encoder's rows
    shift: float  # the largest bias

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return len(self.scale)

    def products(self, rows: Float[Tensor, "rows d"], room: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(products [rows, members, groups] in the room, the rows' units, what errors of a row are proportional to)."""
        lengths = rows.norm(dim=1)
        kind = torch.int32 if self.precision == "int8" else self.table.dtype
        found = room.view(kind)[: len(rows) * len(self.table)].view(len(rows), len(self.table))
        shaped = found.view(len(rows), -1, self.groups)
        if self.precision != "int8":
            torch.addmm(self.bias, rows.to(kind), self.table.T, out=found)
            return shaped, torch.ones_like(lengths), (lengths * self.length + self.shift) * _ROUNDING[self.precision]
        unit = rows.abs().amax(1).clamp(min=self.reach) / 127
        whole = rows.new_empty(len(rows), self.table.shape[1], dtype=torch.int8)
        width = rows.shape[1]
        whole[:, :width] = (rows / unit[:, None]).round_()
        whole[:, width:] = (self.reach / unit[:, None]).round_()
        torch._int_mm(whole, self.table.T, out=found)
        return shaped, unit, torch.hypot(unit * self.length, lengths * self.scale.max())


def make_screen(
    encoder: Float[Tensor, "latents d"], bias: Float[Tensor, "latents"], reach: float, count: int, precision: str
) -> Screen:
    """An encoder ready for products of a precision ("int8", "bfloat16", "float32") that are to find `count` latents a
    row. `reach` is how large a typical row's largest number is."""
    latents, width = encoder.shape
    members = 1
    while members < _MEMBERS and latents >= 8 * members * count:
        members *= 2
    groups = -(-latents // members)
    fill = members * groups - latents
    sizes = reach, float(encoder.norm(dim=1).max()), float(bias.abs().max())
    if precision != "int8":
        kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
        low = torch.finfo(kind).min
        filled = functional.pad(encoder, (0, 0, 0, fill)) if fill else encoder
        shift = functional.pad(bias, (0, fill), value=low).to(kind)
        return Screen(precision, filled.to(kind), shift, encoder.new_ones(groups), *sizes)
    shift = functional.pad(bias / reach, (0, fill))
    largest = torch.cat([encoder[start : start + _CHUNK].abs().amax(1) for start in range(0, latents, _CHUNK)])
    largest = torch.maximum(functional.pad(largest, (0, fill)), shift.abs() / _BIAS)
    scale = largest.view(members, groups).amax(0).clamp(min=1e-30) / 127
    inverse = (1 / scale).repeat(members)
    table = torch.zeros(members * groups, -(-(width + _BIAS) // 8) * 8, dtype=torch.int8, device=encoder.device)
    for start in range(0, latents, _CHUNK):
        part = slice(start, min(start + _CHUNK, latents))
        table[part, :width] = (encoder[part] * inverse[part, None]).round_()
    parts = (shift * inverse).round_()[:, None] + torch.arange(_BIAS, device=bias.device)
    table[:, width : width + _BIAS] = parts.div_(_BIAS).floor_()  # that add up to it
    table[latents:, width : width + _BIAS] = -127
    return Screen(precision, table, bias, scale, *sizes)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Entries, their approximate values, and below which approximate value of a row nothing is one."""

    rows: Int[Tensor, "entries"]
    latents: Int[Tensor, "entries"]
    values: Float[Tensor, "entries"]
    floor: Float[Tensor, "rows"]
    error: Float[Tensor, "rows"]


def _floor_of_rows(maxima: Float[Tensor, "rows groups"], count: int, members: int) -> Float[Tensor, "rows"]:
    """For each row what about `count` of its latents exceed. Groups are folded further, since of fewer numbers the
    best are found faster; as many more latents exceed the best folds' as share a fold."""
    fold = 1
    while fold < 8 and maxima.shape[1] % (2 * fold) == 0 and maxima.shape[1] >= 4 * fold * count:
        fold *= 2
    folds = maxima.view(len(maxima), fold, -1).amax(1)
    number = folds.shape[1]
    rank = count if fold * members == 1 else round(number * (1 - math.exp(-count / number)))
    if rank >= number:
        return maxima.new_full((len(maxima),), -torch.inf)
    return folds.topk(rank, sorted=False).values.amin(1)


def _floor_of_all(maxima: Float[Tensor, "rows groups"], count: int) -> Float[Tensor, "rows"]:
    """What about `count` latents a row exceed on average, as every eighth maximum has it."""
    some = maxima.flatten()[:: 8 if maxima.numel() > 1 << 16 else 1]
    rank = len(some) - count * len(some) // maxima.shape[1]
    floor = some.kthvalue(rank).values if rank > 0 else some.new_full((), -torch.inf)
    return floor.expand(len(maxima))


def room_for(encoder: Float[Tensor, "latents d"]) -> Int[Tensor, "numbers"]:
    """Memory for the products that are made at once. Kept from search to search it is not asked for each time."""
    return torch.empty(max(_PIECE, _ROWS * (len(encoder) + _MEMBERS)), dtype=torch.int32, device=encoder.device)


# From the groups' maxima, what a row's errors are proportional to, and how many latents a group has, to floors.
_Floor = Callable[[Tensor, Tensor, int], Tensor]


def _candidates(
    screen: Screen, rows: Float[Tensor, "rows d"], latents: int, floor_of: _Floor, room: Tensor
) -> _Candidates:
    """Candidates, found in some rows at a time: the latents above a floor, looked for in the groups whose maxima are
    above it."""
    pieces = []
    step = len(room) // len(screen.table)
    for start in range(0, len(rows), step):
        table, unit, error = screen.products(rows[start : start + step], room)
        members, groups = table.shape[1:]
        maxima = table.amax(1).float().mul_(screen.scale).mul_(unit[:, None])
        floor = floor_of(maxima, error, members)
        hit = _where(maxima > floor[:, None])
        row, group = hit // groups, hit % groups
        inside = (row * (members * groups) + group)[:, None] + torch.arange(members, device=row.device) * groups
        factor = screen.scale.index_select(0, group) * unit.index_select(0, row)
        values = table.view(-1).index_select(0, inside.view(-1)).view(inside.shape).float().mul_(factor[:, None])
        above = _where(values > floor.index_select(0, row)[:, None])
        row = row.index_select(0, above // members)
        latent = inside.view(-1).index_select(0, above) - row * (members * groups)
        pieces.append(_Candidates(row + start, latent, values.view(-1).index_select(0, above), floor, error))
    found = _Candidates(*(torch.cat([getattr(p, f.name) for p in pieces]) for f in fields(_Candidates)))
    if len(screen.table) == latents:
        return found
    real = _where(found.latents < latents)  # not one that fills up a group
    return replace(found, rows=found.rows[real], latents=found.latents[real], values=found.values[real])


def _where(mask: Tensor) -> Int[Tensor, "true"]:
    """The places of what is true, counted through all axes."""
    return mask.view(-1).nonzero()[:, 0]


def _exact_values(
    rows: Float[Tensor, "rows d"], encoder: Tensor, bias: Tensor, row: Tensor, latent: Tensor
) -> Float[Tensor, "entries"]:
    """Exact pre-activations of some entries, computed latent by latent: each stays in a near cache for its rows."""
    order = latent.int().argsort(stable=True)  # sorting goes byte by byte
    exact = sampled_products(encoder, rows, offsets_of(latent, len(encoder)), row.index_select(0, order))
    return bias.index_select(0, latent).index_add_(0, order, exact)


def _kept(
    rows: Int[Tensor, "entries"], values: Float[Tensor, "entries"], count: int, k: int, rule: str
) -> tuple[Tensor, Tensor]:
    """(which entries are among the best, what the least of the best is by row); only what is positive is kept."""
    if rule == "topk":
        offsets = offsets_of(rows, count)  # entries are in the order of their rows
        place = torch.arange(len(rows), device=rows.device) - offsets[rows]
        table = values.new_full((count, max(int(offsets.diff().max()), k)), -torch.inf)
        table[rows, place] = values
        best = table.topk(k, sorted=False)
        keep = torch.zeros_like(table, dtype=torch.bool).scatter_(1, best.indices, True)[rows, place]
        least = best.values.amin(1)
    else:
        best_of_all = values.topk(min(k * count, len(values)), sorted=False)
        keep = torch.zeros_like(values, dtype=torch.bool).scatter_(0, best_of_all.indices, True)
        full = len(values) >= k * count > 0
        least = (best_of_all.values.min() if full else values.new_full((), -torch.inf)).expand(count)
    return keep & (values > 0), least.clamp(min=0)


def _exactly(
    rows: Float[Tensor, "rows d"], encoder: Tensor, bias: Tensor, k: int, floor: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(row, latent, value) of the k best of each row, or of all above a floor, in full precision, by pieces."""
    step = max(_PIECE // len(encoder), _ROWS)
    for start in range(0, len(rows), step):
        pre = torch.addmm(bias, rows[start : start + step], encoder.T)
        if floor is None:
            values, latents = pre.topk(min(k, pre.shape[1]))
            row = torch.arange(len(pre), device=pre.device)[:, None].expand_as(latents)
            yield row.flatten() + start, latents.flatten(), values.flatten()
        else:
            row, latent = (pre >= floor).nonzero(as_tuple=True)
            yield row + start, latent, pre[row, latent]


def _reach(rows: Float[Tensor, "rows d"]) -> float:
    """How large the largest number of a typical row is. Raises InputError for a row that is not finite."""
    largest = torch.maximum(rows.amax(1), -rows.amin(1))
    if not bool((largest < torch.inf).all()):
        raise InputError(f"Row {int((~(largest < torch.inf)).nonzero()[0, 0]):,} holds a number that is not finite.")
    return float(largest.median().clamp(min=1e-30))


def _coded(rows: Tensor, latent: Tensor, values: Tensor, count: int, latents: int) -> Codes:
    """Entries in any order as codes."""
    key = rows * latents + latent
    order = (key.int() if count * latents < 1 << 31 else key).argsort()
    return Codes(offsets_of(rows, count), latent.index_select(0, order), values.index_select(0, order), latents)


def codes_above(
    rows: Float[Tensor, "rows d"],
    encoder: Float[Tensor, "latents d"],
    bias: Float[Tensor, "latents"],
    least: Float[Tensor, "latents"],
    *,
    precision: str = "int8",
    room: Tensor | None = None,
) -> Codes:
    """Of rows · encoderᵀ + bias, what exceeds each latent's least. Arguments as of `best_codes`.

    Candidates are what exceeds it less the largest error that is expected; when a larger one is seen, it is expected.
    """
    screen = make_screen(encoder, bias - least, _reach(rows), 64, precision)
    room, expected = room_for(encoder) if room is None else room, _EXPECTED
    while True:
        below: _Floor = lambda maxima, error, _: -expected * error  # noqa: E731, B023
        found = _candidates(screen, rows, len(encoder), below, room)
        values = _exact_values(rows, encoder, bias, found.rows, found.latents)
        over = values - least.index_select(0, found.latents)
        off = (over - found.values).abs_().div_(found.error.index_select(0, found.rows).clamp(min=1e-30))
        seen = float(off.max()) if len(off) else 0.0
        if seen <= expected:
            break
        expected = 1.5 * seen
    kept = _where(over > 0)
    row, latent, values = (entries.index_select(0, kept) for entries in (found.rows, found.latents, values))
    return _coded(row, latent, values, len(rows), len(encoder))


@dataclass(frozen=True, eq=False)
class Best:
    """The best codes of some rows. `redone` is the fraction of rows that needed full precision; `least` the smallest
    value that was kept."""

    codes: Codes
    redone: float
    least: float


def best_codes(
    rows: Float[Tensor, "rows d"],
    encoder: Float[Tensor, "latents d"],
    bias: Float[Tensor, "latents"],
    k: int,
    *,
    rule: str = "topk",
    precision: str = "int8",
    room: Tensor | None = None,
) -> Best:
    """Of rows · encoderᵀ + bias, what is positive among the k largest of each row ("topk", Gao et al. 2024,
    arXiv:2406.04093) or among the k × rows largest of all ("batchtopk", Bussmann et al. 2024, arXiv:2412.06410).

    `precision` is that of the search ("int8", "bfloat16" or "float32"); values are in single precision for any. `room`
    is what `room_for` gave. Raises InputError for a row that is not finite.
    """
    latents, count = len(encoder), len(rows)
    k = min(k, latents)
    wanted = k + max(round(k * _SPARE[precision] * (1.0 if rule == "topk" else 0.6)), 8)
    screen = make_screen(encoder, bias, _reach(rows), wanted, precision)
    by_row: _Floor = lambda maxima, _, members: _floor_of_rows(maxima, wanted, members)  # noqa: E731
    of_all: _Floor = lambda maxima, *_: _floor_of_all(maxima, wanted)  # noqa: E731
    room = room_for(encoder) if room is None else room
    found = _candidates(screen, rows, latents, by_row if rule == "topk" else of_all, room)
    row, latent = found.rows, found.latents
    values = _exact_values(rows, encoder, bias, row, latent)
    keep, least = _kept(row, values, count, k, rule)
    off = (values - found.values).abs_().div_(found.error[row].clamp(min=1e-30))
    margin = found.error * (off.max() if len(off) else 0.0)
    unsure = (least <= found.floor + margin) & (found.floor > -torch.inf)
    again = _where(unsure)
    if len(again):
        floor = None if rule == "topk" else least[0]
        pieces = [(again[r], c, v) for r, c, v in _exactly(rows[again], encoder, bias, k, floor)]
        good = ~unsure[row] if rule == "topk" else ~unsure[row] & keep
        row, latent, values = (
            torch.cat([old[good], *(piece[index] for piece in pieces)])
            for index, old in enumerate((row, latent, values))
        )
        order = row.argsort(stable=True)
        row, latent, values = row[order], latent[order], values[order]
        keep, _ = _kept(row, values, count, k, rule)
    kept = _where(keep)
    row, latent, values = row.index_select(0, kept), latent.index_select(0, kept), values.index_select(0, kept)
    smallest = float(values.min()) if len(values) else 0.0
    return Best(_coded(row, latent, values, count, latents), len(again) / max(count, 1), smallest)


def better_precision(precision: str, redone: float) -> str:
    """The precision to go on with after a fraction of rows needed full precision: where that is much (a few numbers of
    each row are far larger than the others), one more exact."""
    if redone <= _TOO_MANY:
        return precision
    return "bfloat16" if precision == "int8" else "float32"


@cache
def fast_precision(device: str) -> str:
    """The lowest precision whose products are right and fastest on a device, tried once."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randint(-127, 128, (1280, 512), generator=generator).to(device).float()
    rows, latents = made[:256], made[256:]
    latents[0], rows[0] = 127, 127  # what would overflow sixteen bits
    jobs: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "float32": lambda left, right: left @ right.T,
        "bfloat16": lambda left, right: left.bfloat16() @ right.bfloat16().T,
        "int8": lambda left, right: torch._int_mm(left.to(torch.int8), right.to(torch.int8).T),
    }
    taken = {}
    for name, job in jobs.items():
        try:
            shapes = ((rows, latents), (rows[:5], latents[:999]))  # any shape must do
            right = all(torch.allclose(job(*pair).float(), pair[0] @ pair[1].T, rtol=0.02, atol=2e4) for pair in shapes)
        except (RuntimeError, NotImplementedError):
            continue
        times = []
        for _ in range(5):
            start = time.perf_counter()
            float(job(rows, latents)[0, 0])  # waits for a GPU
            times.append(time.perf_counter() - start)
        if right:
            taken[name] = min(times)
    return min(taken, key=lambda name: taken[name])
