"""Batches of values cut into shards: at the same examples, wherever a collection begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .data import Batch, content
from .moments import Value
from .shards import STORED, Shard, write_shard

LIMIT = 32 << 20  # bytes of values of a shard: what a kill can lose
SMALL = 64 << 20  # bytes of an input of all examples that is kept, however large beside the values
_SOME = 16  # of so many examples, one
_LOST = 0.01  # of the values' energy that storing them may lose


@dataclass
class Cutter:
    """Takes values in order and writes shards of them to `folder`, added to `shards`; `inputs` names the inputs that
    are stored beside them. `stream`: examples are stored with a digest, to be known when they come again."""

    folder: Path
    dtype: torch.dtype
    stream: bool
    inputs: Sequence[str]
    shards: list[Shard]
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of the first batch's values and inputs
    _kinds: dict[str, torch.dtype] = field(default_factory=dict)
    _pieces: dict[str, list[Tensor]] = field(default_factory=dict)
    _small: list[str] = field(default_factory=list)  # sites of which the dtype may make zeros
    _span: list[int] = field(default_factory=lambda: [0, 0])  # the first example that waits, and the one after the last
    _rows: int = 0
    _bytes: int = 0

    def add(self, item: Batch, values: Mapping[str, Value], start: int, parts: Sequence[tuple[int, int, bool]]) -> None:
        """Parts of a batch whose first example has number `start`: from an example up to another, and whether a shard
        ends there. Raises InputError for what cannot be stored, ResourceError from the disk."""
        self._check_alike(item, values)
        if not parts:
            return
        stored = {site: self._stored(site, value.rows, item) for site, value in values.items()}
        self._small = [site for site, value in values.items() if coarser(self.dtype, value.rows.dtype)]
        for site in self._small:
            check_energy(site, values[site].rows, stored[site], item.numbers)
        each = sum(rows[0].numel() * self.dtype.itemsize for rows in stored.values())
        for low, high, ends in parts:
            if low != self._span[1]:
                self.flush()
                self._span = [low, low]
            while low < high:
                room = (LIMIT - self._bytes) // each
                count = min(high - low, max(room, 0 if self._bytes else 1))
                if count:
                    self._keep(item, stored, low - start, count)
                    self._count(values, low - start, count)
                    low += count
                    self._span[1], self._bytes = low, self._bytes + count * each
                if low < high or room <= count or ends:
                    self.flush()

    def flush(self) -> None:
        """Write what waits as a shard, with the sums that the figures of all rows are made of."""
        if not self._pieces:
            return
        tensors: dict[str, Sequence[Tensor]] = dict(self._pieces)
        for name in [name for name in tensors if name.startswith("zeroed/")]:
            tensors[name] = [torch.stack(list(tensors[name])).sum(0)]
        for site in [name[7:] for name in self._pieces if name.startswith("values/")]:
            width = self._pieces[f"values/{site}"][0].shape[-1]
            total, norms = torch.zeros(width, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
            for piece in self._pieces[f"values/{site}"]:
                rows = piece.float()
                squares = rows.square().sum(1)
                total += rows.sum(0)
                norms += torch.stack([squares.sqrt().sum(), squares.sum()])
            tensors[f"sum/{site}"], tensors[f"norms/{site}"] = [total], [norms]
        self.shards.append(write_shard(self.folder, self._span[0], self._span[1], self._rows, tensors))
        self._pieces = {}
        self._span[0], self._rows, self._bytes = self._span[1], 0, 0

    def _check_alike(self, item: Batch, values: Mapping[str, Value]) -> None:
        """Raises InputError where values or inputs are shaped otherwise than those of the first batch."""
        there = item.inputs()
        inputs = {f"the input '{name}'": there[name] for name in self.inputs if name in there}
        sites = {f"'{site}'": value.rows for site, value in values.items()}
        for name, tensor in (sites | inputs).items():
            shape, at = tuple(tensor.shape), f"{int(item.numbers[0]):,}"
            first = self._shapes.setdefault(name, shape)
            if len(shape) != len(first):
                raise InputError(
                    f"{name} has shape {first} in the first batch and {shape} from example {at} on; batches "
                    "with different numbers of axes cannot be collected together."
                )
            if name in sites and shape[-1] != first[-1]:
                raise InputError(
                    f"{name} has vectors of {first[-1]} numbers before and of {shape[-1]} in example {at}; rows "
                    "of different widths cannot be collected together."
                )

    def _count(self, values: Mapping[str, Value], at: int, count: int) -> None:
        """Add how many numbers of some examples are no zero, and how many of them are stored as zero."""
        for site in self._small:
            some = values[site].rows[at : at + some_of(count)]
            low = np.count_nonzero((some.abs() <= half_step(self.dtype)).cpu().numpy())
            zero = low and np.count_nonzero((some == 0).cpu().numpy())
            self._pieces.setdefault(f"zeroed/{site}", []).append(torch.tensor([some.numel() - zero, low - zero]))

    def _stored(self, site: str, rows: Tensor, item: Batch) -> Tensor:
        """Values as they lie on disk."""
        made = rows.to("cpu", self.dtype)
        # A sum shows whether a number is infinite or none; where it overflows by itself, a closer look tells.
        if not bool(made.sum(dtype=torch.float32).isfinite()) and not bool(made.isfinite().all()):
            place = (~made.isfinite()).nonzero()[0].tolist()
            number = float(rows[tuple(place)])
            position = ", ".join(map(str, place[1:-1])) or "0"
            where = f"'{site}' in example {int(item.numbers[place[0]]):,}, position {position}"
            if abs(number) < float("inf"):
                raise InputError(
                    f"{where} holds {number:.6g}, which is too large for {str(self.dtype)[6:]}; collect with "
                    "dtype='bfloat16' or 'float32'."
                )
            raise InputError(f"{where} is not finite; find out why, or leave the example out.")
        return made

    def _keep(self, item: Batch, stored: Mapping[str, Tensor], at: int, count: int) -> None:
        inputs, chosen = item.inputs(), slice(at, at + count)
        pieces = {f"values/{site}": rows[chosen].reshape(-1, rows.shape[-1]) for site, rows in stored.items()}
        self._rows += len(next(iter(pieces.values())))
        pieces["examples/number"] = item.numbers[chosen]
        pieces["examples/grid"] = _repeated(next(iter(stored.values())).shape[1:-1], count)
        if self.stream:
            pieces["examples/digest"] = digests(item)[chosen]
        for name in self.inputs:
            if name not in inputs:
                raise InputError(f"The input '{name}' is missing from example {int(item.numbers[0]):,} on.")
            part = inputs[name][chosen].detach()
            pieces[f"inputs/{name}"] = part.flatten().to("cpu", self._kinds.setdefault(name, part.dtype))
            pieces[f"inputs/{name}/shape"] = _repeated(part.shape[1:], count)
        for name, piece in pieces.items():
            self._pieces.setdefault(name, []).append(piece)


def coarser(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether small numbers of another dtype are none in this one."""
    return torch.finfo(dtype).tiny > torch.finfo(other).tiny


def half_step(dtype: torch.dtype) -> float:
    """What rounding takes from a number near zero, at most; numbers no larger than this become zero."""
    return torch.finfo(dtype).tiny * torch.finfo(dtype).eps / 2


def some_of(count: int) -> int:
    """Of so many examples, those looked at where a look at each would cost too much."""
    return 1 + (count - 1) // _SOME


def check_energy(site: str, rows: Tensor, made: Tensor, numbers: Tensor) -> None:
    """Raises InputError where numbers are too small for the dtype they are stored in, by the share of the squared sum
    of a batch that is lost."""
    # Where the squared sum, already that of some examples, is far above what rounding takes from all, nothing is amiss.
    most = half_step(made.dtype) * (rows.numel() / _LOST) ** 0.5
    if float(torch.linalg.vector_norm(rows[: some_of(len(rows))])) > 2 * most:
        return
    exact = rows.to("cpu", torch.float64)
    energy = float(exact.square().sum())
    lost = float((exact - made.double()).square().sum()) / energy if energy else 0.0
    if lost > _LOST:
        name = str(made.dtype)[6:]
        other = "dtype='bfloat16' or 'float32'" if made.dtype is torch.float16 else "larger inputs"
        raise InputError(
            f"'{site}' in examples {int(numbers[0]):,} to {int(numbers[-1]):,} holds numbers too small for {name} (at "
            f"most {float(exact.abs().max()):.3g}): storing them would lose {lost:.1%} of their squared sum; collect "
            f"with {other}."
        )


def _repeated(sizes: Sequence[int], count: int) -> Tensor:
    return torch.tensor(list(sizes), dtype=torch.long).expand(count, len(sizes))


def kept(item: Batch, values: Mapping[str, Value], count: int | None) -> list[str]:
    """Which inputs are stored beside the values: ids, and others that are no more numbers than the values or, for all
    `count` examples (None: not known), no more than SMALL bytes."""
    room = sum(value.rows.numel() for value in values.values())
    few = len(item.numbers) * SMALL // (count or 1 << 62)
    return [
        name for name, tensor in item.inputs().items()
        if tensor.dtype in STORED and (not tensor.is_floating_point() or tensor.numel() <= room or tensor.nbytes <= few)
    ]  # fmt: skip


def left_out(item: Batch, values: Mapping[str, Value], count: int | None) -> list[str]:
    """A note for each input that is not stored."""
    there, told = kept(item, values, count), item.inputs()
    width = sum(value.rows[0].numel() for value in values.values())
    return [
        f"the input '{name}' is not kept ({tensor[0].numel():,} numbers an example beside {width:,} of values), so "
        "examples can be shown or indexed only by running the network on them again"
        for name, tensor in told.items() if name not in there
    ]  # fmt: skip


def digests(item: Batch) -> Tensor:
    """A number for each example that another example has by chance once in 2**63."""
    inputs = item.inputs()
    told = "".join(f"|{name}|{tensor.dtype}|{tuple(tensor.shape[1:])}" for name, tensor in inputs.items())
    found = []
    for place in range(len(item.numbers)):
        digest = hashlib.sha256(told.encode())
        for tensor in inputs.values():
            digest.update(content(tensor[place]))
        found.append(int.from_bytes(digest.digest()[:8], "little") >> 1)
    return torch.tensor(found)


def check_come_again(found: Tensor, start: int, shards: Sequence[Shard]) -> None:
    """Raises InputError where examples from number `start` on are not those that were collected; `found`: digests."""
    for shard in shards:
        low, high = max(shard.first, start), min(shard.last, start + len(found))
        if low < high:
            there = torch.from_numpy(shard.read("examples/digest")[low - shard.first : high - shard.first].copy())
            if odd := (there != found[low - start : high - start]).nonzero().flatten().tolist():
                raise InputError(
                    f"Example {low + odd[0]:,} is not the one that was collected before, so these are other data; "
                    "collect into another folder."
                )
