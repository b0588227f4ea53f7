"""Batches of values cut into shards: at the same examples, wherever a collection begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from .data import Batch, content
from .moments import Value
from .shards import STORED, Shard, write_shard

LIMIT = 32 << 20  # bytes of values of a shard: what a kill can lose


@dataclass
class Cutter:
    """Takes values in order and writes shards of them to `folder`, added to `shards`; `inputs` names the inputs that
    are stored beside them. `stream`: examples are stored with a digest, to be known when they come again."""

    folder: Path
    dtype: torch.dtype
    stream: bool
    inputs: Sequence[str]
    shards: list[Shard]
    _widths: dict[str, int] = field(default_factory=dict)
    _kinds: dict[str, torch.dtype] = field(default_factory=dict)
    _pieces: dict[str, list[Tensor]] = field(default_factory=dict)
    _from: int = 0
    _to: int = 0
    _rows: int = 0
    _bytes: int = 0

    def add(self, item: Batch, values: Mapping[str, Value], start: int, parts: Sequence[tuple[int, int, bool]]) -> None:
        """Parts of a batch whose first example has number `start`: from an example up to another, and whether a shard
        ends there. Raises InputError for numbers that cannot be stored, ResourceError from the disk."""
        if not parts:
            return
        stored = {site: self._stored(site, value.rows, item) for site, value in values.items()}
        each = sum(rows[0].numel() * self.dtype.itemsize for rows in stored.values())
        for low, high, ends in parts:
            if low != self._to:
                self.flush()
                self._from = self._to = low
            while low < high:
                room = (LIMIT - self._bytes) // each
                count = min(high - low, max(room, 0 if self._bytes else 1))
                if count:
                    self._keep(item, stored, low - start, count)
                    low += count
                    self._to, self._bytes = low, self._bytes + count * each
                if low < high or room <= count or ends:
                    self.flush()

    def flush(self) -> None:
        """Write what waits as a shard, with the sums that the figures of all rows are made of."""
        if not self._pieces:
            return
        tensors: dict[str, Sequence[Tensor]] = dict(self._pieces)
        for site, width in self._widths.items():
            total, norms = torch.zeros(width, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
            for piece in self._pieces[f"values/{site}"]:
                rows = piece.float()
                squares = rows.square().sum(1)
                total += rows.sum(0)
                norms += torch.stack([squares.sqrt().sum(), squares.sum()])
            tensors[f"sum/{site}"], tensors[f"norms/{site}"] = [total], [norms]
        self.shards.append(write_shard(self.folder, self._from, self._to, self._rows, tensors))
        self._pieces = {}
        self._from, self._rows, self._bytes = self._to, 0, 0

    def _stored(self, site: str, rows: Tensor, item: Batch) -> Tensor:
        """Values as they lie on disk."""
        width = self._widths.setdefault(site, rows.shape[-1])
        if rows.shape[-1] != width:
            raise InputError(
                f"'{site}' has vectors of {width} numbers before and of {rows.shape[-1]} in example "
                f"{int(item.numbers[0]):,}; rows of different widths cannot be collected together."
            )
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


def _repeated(sizes: Sequence[int], count: int) -> Tensor:
    return torch.tensor(list(sizes), dtype=torch.long).expand(count, len(sizes))


def kept(item: Batch, values: Mapping[str, Value]) -> list[str]:
    """Which inputs are stored beside the values: ids, and others that are no more numbers than the values."""
    room = sum(value.rows.numel() for value in values.values())
    return [
        name for name, tensor in item.inputs().items()
        if tensor.dtype in STORED and (not tensor.is_floating_point() or tensor.numel() <= room)
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
