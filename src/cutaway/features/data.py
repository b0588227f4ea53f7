"""Data sets to run a network on: texts, running text cut into contexts, tensors, files of arrays, streams of batches.

Examples of one batch always have one shape. Nothing is padded, for padding changes what a network computes: texts of
different lengths run in batches of their own, and what does not fill a context is left out and told.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import FormatError, InputError
from ..formats import open_checkpoint
from ..formats.reading import file_size, strict_json
from ..run.network import Network

CONTEXT = 128  # tokens of a context of running text, where nothing else is asked for
LARGEST_TEXT = 256 << 20  # bytes of a file of texts
_TOKENS, _NUMBERS = 4096, 1 << 20  # of a batch, about
_ARRAYS = (".npy", ".npz", ".safetensors")
_HASHED = 1 << 24  # bytes hashed at once


class Batch(NamedTuple):
    """Examples that run together: their numbers in the data set, and what the network is given."""

    numbers: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def inputs(self) -> dict[str, Tensor]:
        """The tensors that hold a row for each example, by position or keyword."""
        named = {**{str(place): item for place, item in enumerate(self.args)}, **self.kwargs}
        count = len(self.numbers)
        return {name: t for name, t in named.items() if isinstance(t, Tensor) and t.ndim and len(t) == count}


@dataclass(frozen=True, eq=False)
class Data:
    """A data set. `batches` starts anew each time it is called, but for an iterator, which can be read only once.

    `hash` is of the examples ("" where they are not known before they come), `count` how many there are (None: not
    known), `units` tokens of texts, else examples, `about` what the manifest says.
    """

    batches: Callable[[], Iterator[Batch]]
    about: dict[str, Any]
    hash: str = ""
    count: int | None = None
    units: int = 0
    notes: list[str] = field(default_factory=list)


def data_of(
    net: Network, given: Any, context: int | None = None, batch: int | None = None, limit: int | None = None
) -> Data:
    """A data set from what a person has.

    `given`: a list of texts; one text, or the path of a text file (running text, cut into contexts of `context` tokens)
    or of a .json or .jsonl file with a list of texts; a tensor or array [examples, ...], a tuple of them (arguments) or
    a dict (keywords); the path of a .npy, .npz or .safetensors file of them; an iterable of batches (a tensor, a tuple
    of arguments, of which the last may be a dict of keywords, or such a dict), or a function that gives one. `limit`:
    so many examples at most. Raises InputError, FormatError.
    """
    for name, value in (("context", context), ("batch", batch), ("limit", limit)):
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"{name} is {value!r}; give a whole number of at least 1.")
    told: dict[str, Any] = {}
    if isinstance(given, str) and len(given) < 256 and "\n" not in given and Path(given).is_file():
        given = Path(given)
    if isinstance(given, Path):
        given, told = _read(given), {"file": str(given)}
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(np.ascontiguousarray(given))
    if isinstance(given, str) or (isinstance(given, (list, tuple)) and given and isinstance(given[0], str)):
        found = _texts(net, given, context, batch, limit)
    elif context is not None:
        raise InputError("context= is for texts; inputs of other kinds have the length that they have.")
    elif isinstance(given, Mapping):
        found = _arrays((), dict(given), batch, limit)
    elif isinstance(given, (Tensor, tuple, _Lazy)):
        found = _arrays(given if isinstance(given, tuple) else (given,), {}, batch, limit)
    elif callable(given) or isinstance(given, Iterable):
        found = _stream(net, given, batch, limit)
    else:
        raise InputError(f"A {type(given).__name__} is no data set; give texts, tensors, a Path, or batches.")
    found.about.update(told)
    return found


# ---- texts


def _texts(net: Network, given: Any, context: int | None, batch: int | None, limit: int | None) -> Data:
    if net.tokenizer is None:
        raise InputError(f"'{net.name}' has no tokenizer; give tensors, or open it with tokenizer=….")
    running = isinstance(given, str)
    texts = [given] if running else list(given)
    if odd := [type(text).__name__ for text in texts if not isinstance(text, str)]:
        raise InputError(f"The list of texts holds a {odd[0]}; give texts alone.")
    rows = [torch.tensor(net.tokenizer.encode(text), dtype=torch.long) for text in texts]
    total, empty = sum(map(len, rows)), sum(not len(row) for row in rows)
    if not total:
        raise InputError("The texts have no tokens; give at least one word.")
    length = context or (min(CONTEXT, total) if running else 0)
    if length:
        rows = [row[start : start + length] for row in rows for start in range(0, len(row) - length + 1, length)]
        if not rows:
            raise InputError(f"No text has {length} tokens; give a smaller context than {length}.")
    rows = [row for row in rows if len(row)]
    rows = rows[: limit or len(rows)]
    lengths = Counter(map(len, rows))
    used = sum(map(len, rows))
    groups: dict[int, list[int]] = {size: [] for size in sorted(lengths)}
    for number, row in enumerate(rows):
        groups[len(row)].append(number)

    def batches() -> Iterator[Batch]:
        for size, numbers in groups.items():
            step = batch or max(_TOKENS // size, 1)
            for start in range(0, len(numbers), step):
                chosen = numbers[start : start + step]
                yield Batch(torch.tensor(chosen), (torch.stack([rows[number] for number in chosen]),), {})

    digest = hashlib.sha256(b"tokens")
    for row in rows:
        digest.update(len(row).to_bytes(8, "little") + row.numpy().tobytes())
    about = {
        "kind": "running text" if running else "texts", "texts": len(texts), "examples": len(rows), "tokens": used,
        "context": length or None, "lengths": {str(size): lengths[size] for size in sorted(lengths)},
        "left_out": {"tokens": total - used, "empty texts": empty},
    }  # fmt: skip
    notes = [f"{total - used:,} of {total:,} tokens fill no context or lie beyond the limit, and were left out"]
    return Data(batches, about, digest.hexdigest(), len(rows), used, notes if total > used else [])


# ---- arrays


@dataclass(frozen=True, eq=False)
class _Lazy:
    """An array in a file: read row by row."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        part = self.array[start:stop]
        return torch.from_numpy(np.array(part, dtype=part.dtype.newbyteorder("="), order="C"))


def _part(item: Any, start: int, stop: int) -> Any:
    return item.rows(start, stop) if isinstance(item, _Lazy) else item[start:stop]


def _arrays(args: tuple[Any, ...], kwargs: dict[str, Any], batch: int | None, limit: int | None) -> Data:
    items: dict[str, Any] = {**{str(place): item for place, item in enumerate(args)}, **kwargs}
    for name, item in list(items.items()):
        if isinstance(item, np.ndarray):
            items[name] = torch.from_numpy(np.ascontiguousarray(item))
        elif not isinstance(item, (Tensor, _Lazy)):
            raise InputError(f"The input '{name}' is a {type(item).__name__}; give tensors [examples, ...].")
        if not items[name].shape or not items[name].shape[0]:
            raise InputError(f"The input '{name}' has shape {tuple(items[name].shape)} and so no examples.")
    counts = {name: item.shape[0] for name, item in items.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"'{name}' {count:,}" for name, count in counts.items())
        raise InputError(f"All inputs need a row for each example, and they have different counts: {told}.")
    count = min(next(iter(counts.values())), limit or 1 << 62)
    step = batch or _fitting(_part(next(iter(items.values())), 0, 1))

    def batches() -> Iterator[Batch]:
        for start in range(0, count, step):
            stop = min(start + step, count)
            given = {name: _part(item, start, stop) for name, item in items.items()}
            placed = tuple(given.pop(str(place)) for place in range(len(args)))
            yield Batch(torch.arange(start, stop), placed, given)

    digest = hashlib.sha256(b"arrays")
    for name, item in items.items():
        rows = max(_HASHED // max(math.prod(item.shape[1:]) * 8, 1), 1)
        digest.update(f"|{name}|{_part(item, 0, 1).dtype}|{(count, *item.shape[1:])}|".encode())
        for start in range(0, count, rows):
            digest.update(content(_part(item, start, min(start + rows, count))))
    about = {
        "kind": "arrays", "examples": count,
        "inputs": {name: [count, *item.shape[1:]] for name, item in items.items()},
    }  # fmt: skip
    return Data(batches, about, digest.hexdigest(), count, count)


def _fitting(first: Tensor) -> int:
    """Examples of a batch by the first one [1, ...]: as many as make some thousand positions of ids, or a million
    numbers."""
    if first.ndim == 2 and not first.is_floating_point():
        return max(_TOKENS // max(first.numel(), 1), 1)
    return min(max(_NUMBERS // max(first.numel(), 1), 1), _TOKENS)


def content(tensor: Tensor) -> memoryview:
    """The bytes of a tensor."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


# ---- streams


def _stream(net: Network, given: Any, batch: int | None, limit: int | None) -> Data:
    """Batches that come from somewhere, one at a time."""
    if batch is not None:
        raise InputError("batch= cannot be chosen for data that come in batches; give other batches.")

    def batches() -> Iterator[Batch]:
        start = 0
        for item in given() if callable(given) else given:
            made = _of_stream(net, item, start)
            count = min(len(made.numbers), (limit or 1 << 62) - start)
            if count < len(made.numbers):
                cut = {name: tensor[:count] for name, tensor in made.inputs().items()}
                args = tuple(cut.get(str(place), item) for place, item in enumerate(made.args))
                made = Batch(made.numbers[:count], args, {n: cut.get(n, item) for n, item in made.kwargs.items()})
            yield made
            start += count
            if limit and start >= limit:
                return

    return Data(batches, {"kind": "batches"})


def _of_stream(net: Network, item: Any, start: int) -> Batch:
    if isinstance(item, str) or (isinstance(item, (list, tuple)) and item and isinstance(item[0], str)):
        item = net.encode(item)
    if isinstance(item, np.ndarray):
        item = torch.from_numpy(item)
    args = item if isinstance(item, tuple) else (item,)
    args, kwargs = (args[:-1], dict(args[-1])) if args and isinstance(args[-1], Mapping) else (args, {})
    first = next((tensor for tensor in (*args, *kwargs.values()) if isinstance(tensor, Tensor) and tensor.ndim), None)
    if first is None or not len(first):
        raise InputError(f"The batch after example {start:,} holds no tensor [examples, ...] with examples.")
    return Batch(torch.arange(start, start + len(first)), args, kwargs)


# ---- files


def _read(path: Path) -> Any:
    """What a file holds: a text, a list of texts, or arrays. Raises FormatError for what it should not hold."""
    if path.suffix in _ARRAYS:
        checkpoint = open_checkpoint(path)
        arrays = {name: _Lazy(checkpoint.numbers(name)) for name in checkpoint.tensors}
        if not arrays:
            raise FormatError(f"{path} holds no array.")
        return next(iter(arrays.values())) if len(arrays) == 1 else arrays
    if file_size(path) > LARGEST_TEXT:
        raise FormatError(f"{path} is larger than {LARGEST_TEXT >> 20} MiB; cut it into several files.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is no text in UTF-8 ({getattr(error, 'strerror', None) or error}).") from error
    if path.suffix not in (".json", ".jsonl"):
        return text
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [strict_json(line.encode(), f"{path}, line {at}") for at, line in enumerate(lines, 1)] if (
        path.suffix == ".jsonl"
    ) else strict_json(text.encode(), str(path))  # fmt: skip
    texts = [row.get("text") if isinstance(row, dict) else row for row in rows] if isinstance(rows, list) else []
    if not texts or not all(isinstance(row, str) for row in texts):
        raise FormatError(f"{path} is no list of texts, nor of objects with a 'text'.")
    return texts
