"""Two checkpoints compared tensor by tensor, whatever their formats: what changed, where, by how much, of which rank.

Tensors are paired by name first, then by content: renamed, transposed, cast to another type, quantised. One pair is
held in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cutaway.formats import Checkpoint, TensorInfo
from cutaway.formats.dtypes import DTYPES
from cutaway.weights.spectrum import numerical_rank

PIECE = 1 << 22  # numbers that are added up together
SAMPLE = 4096  # numbers by which tensors of different names are held against each other
LIKE = 0.98  # their cosine, to be taken for the same tensor
NAMED = 8  # rows and columns that are told by number
# Half the distance of neighbouring numbers relative to their size, by which rounding to a type may err.
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ROUNDING |= {"float8_e4m3fn": 2.0**-4, "float8_e5m2": 2.0**-3}


@dataclass
class Change:
    """One tensor in both files. `status`: same, cast, quantised or changed; `other`: its name in the second file.

    `relative`: ‖B − A‖ / ‖A‖; `largest`: of |B − A|; `rank` of B − A as a matrix, of at most `full`; `exact` is whether
    it is the rank or only the least it may be. `rows` and `columns` are those in which anything changed.
    """

    name: str
    other: str
    status: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    transposed: bool = False
    figures: dict[str, float] = field(default_factory=dict)
    rank: int | None = None
    full: int | None = None
    exact: bool = True
    rows: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether nothing changed, neither numbers nor name nor order."""
        return self.status == "same" and self.name == self.other and not self.transposed

    @property
    def low_rank(self) -> bool:
        """Whether the change has so small a rank that an adapter (LoRA, Hu et al. 2021) explains it, and not because
        few rows or columns changed."""
        if not self.rank or not self.full or not self.exact or self.full < 8:
            return False
        touched = min(self.rows["count"], self.columns["count"])
        return self.rank <= self.full // 4 and 2 * self.rank <= touched


@dataclass
class Difference:
    """Everything that differs between two checkpoints; `reshaped` have the same name and another shape, `unread` are
    only listed, or claim more numbers than are stored."""

    paths: tuple[str, str]
    formats: tuple[str, str]
    changes: list[Change]
    added: list[str]
    removed: list[str]
    reshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    unread: list[str]

    @property
    def equal(self) -> bool:
        """Whether every number is the same under the same name."""
        rest = self.added or self.removed or self.reshaped or self.unread
        return not rest and all(row.plain for row in self.changes)

    def record(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        rows = [asdict(row) | {"low_rank": row.low_rank} for row in self.changes]
        return {
            "paths": list(self.paths), "formats": list(self.formats), "equal": self.equal, "changes": rows,
            "added": self.added, "removed": self.removed, "reshaped": [list(row) for row in self.reshaped],
            "unread": self.unread,
            "counts": dict(Counter(row.status for row in self.changes)), "summary": self.summary(),
        }  # fmt: skip

    def summary(self) -> list[str]:
        """What happened, in sentences."""
        if self.equal:
            return ["Both hold the same numbers under the same names."]
        by = {status: [row for row in self.changes if row.status == status] for status in _WORDS}
        found = [f"{_tensors(len(rows), *_WORDS[status])}." for status, rows in by.items() if rows]
        if low := [row for row in self.changes if row.low_rank]:
            ranks = Counter(row.rank for row in low)
            rank, count = ranks.most_common(1)[0]
            all_of = "Every change" if len(low) == len(by["changed"]) else f"The change of {_tensors(len(low))}"
            found.append(
                f"{all_of} is of low rank, as merging a LoRA leaves it: rank {rank} in {count}"
                + (f", at most {max(row.rank or 0 for row in low)}." if len(ranks) > 1 else ".")
            )
        for side in ("rows", "columns"):
            few = [row for row in by["changed"] if _few(getattr(row, side))]
            if few:
                where = getattr(few[0], side)
                places = ", ".join(map(str, where["first"])) + (" …" if where["count"] > NAMED else "")
                found.append(
                    f"{_tensors(len(few))} changed in few {side} only: {few[0].name} in {where['count']} of "
                    f"{where['of']} ({places})."
                )
        if renamed := [row for row in self.changes if row.name != row.other]:
            first = f"{renamed[0].name} is {renamed[0].other}"
            found.append(f"{_tensors(len(renamed), 'has', 'have')} another name: {first}.")
        if turned := sum(row.transposed for row in self.changes):
            found.append(f"{_tensors(turned, 'is', 'are')} transposed.")
        for word, names in (("added", self.added), ("removed", self.removed)):
            if names:
                found.append(f"{_tensors(len(names))} {word}: {', '.join(names[:3])}{' …' if len(names) > 3 else '.'}")
        if self.reshaped:
            which = _tensors(len(self.reshaped), "has", "have")
            found.append(f"{which} another shape, {self.reshaped[0][0]} the first.")
        if self.unread:
            was = "was" if len(self.unread) == 1 else "were"
            found.append(f"{_tensors(len(self.unread))} cannot be read here, and {was} not compared: {self.unread[0]}.")
        return found


_WORDS = {
    "same": ("holds the same numbers", "hold the same numbers"),
    "cast": ("differs only by rounding to another type", "differ only by rounding to another type"),
    "quantised": ("is a quantised form of the other", "are a quantised form of the other"),
    "changed": ("changed", "changed"),
}  # fmt: skip


def _few(where: dict[str, Any]) -> bool:
    return bool(where) and 0 < where["count"] <= where["of"] // 2


def _tensors(count: int, one: str = "", many: str = "") -> str:
    return f"{count} tensor{'s' if count != 1 else ''} {one if count == 1 else many}".rstrip()


def compare(before: Checkpoint, after: Checkpoint) -> Difference:
    """Compare two checkpoints. Raises FormatError for a tensor that cannot be read."""
    paired, reshaped = [], []
    files = (before, after)
    unread = dict.fromkeys(name for file in files for name, tensor in file.tensors.items() if _unread(tensor))
    left, right = (dict.fromkeys(name for name in file.tensors if name not in unread) for file in files)
    for name in list(left):
        if name in right:
            one, other = before.tensors[name].shape, after.tensors[name].shape
            if one == other:
                paired.append((name, name, False))
            elif one == other[::-1] and _like(before, name, after, name, turned=True):
                paired.append((name, name, True))
            else:
                reshaped.append((name, one, other))
            del left[name], right[name]
    more = _renamed(before, list(left), after, list(right))
    for old, new, _ in more:
        del left[old], right[new]
    changes = [_change(before, name, after, other, turned) for name, other, turned in [*paired, *more]]
    paths, formats = (str(before.path), str(after.path)), (before.format, after.format)
    return Difference(paths, formats, changes, list(right), list(left), reshaped, list(unread))


def _unread(tensor: TensorInfo) -> bool:
    return tensor.expanded or bool(tensor.place.refusal)


def _renamed(before: Checkpoint, left: list[str], after: Checkpoint, right: list[str]) -> list[tuple[str, str, bool]]:
    """Pairs of different names whose numbers are alike: equal ones first, then those of a cosine near one."""
    found: list[tuple[str, str, bool]] = []
    digests: dict[Any, list[str]] = {}
    for name in right:
        digests.setdefault(_digest(after, name), []).append(name)
    for name in left:
        twins = digests.get(_digest(before, name), [])
        if twins:
            twins.sort(key=lambda other: -_shared(name, other))
            found.append((name, twins.pop(0), False))
    taken = {name for row in found for name in row[:2]}
    free: dict[tuple[int, ...], list[str]] = {}
    for name in right:
        if name not in taken:
            free.setdefault(after.tensors[name].shape, []).append(name)
    for name in left:
        shape = before.tensors[name].shape
        if name in taken:
            continue
        for turned in (False, True) if len(shape) == 2 else (False,):
            rivals = free.get(shape[::-1] if turned else shape, [])
            if match := next((other for other in rivals if _like(before, name, after, other, turned)), None):
                rivals.remove(match)
                found.append((name, match, turned))
                break
    return found


def _shared(one: str, other: str) -> int:
    """How many characters at the end two names share, so that of equal tensors the fitting ones are paired."""
    return next((at for at, (a, b) in enumerate(zip(one[::-1], other[::-1], strict=False)) if a != b), len(one))


def _digest(checkpoint: Checkpoint, name: str) -> Any:
    numbers = np.ascontiguousarray(checkpoint.numbers(name))
    return numbers.shape, hashlib.sha256(numbers.view(np.uint8).data if numbers.size else b"").digest()


def _like(before: Checkpoint, name: str, after: Checkpoint, other: str, turned: bool = False) -> bool:
    one, two = before.numbers(name), after.numbers(other)
    two = two.T if turned else two
    if one.size < 2 or one.dtype.kind not in "f" or two.dtype.kind not in "f":
        return one.size > 0 and bool(np.array_equal(one, two))
    at = np.linspace(0, one.size - 1, min(SAMPLE, one.size)).astype(np.int64)
    a, b = (part[np.unravel_index(at, part.shape)].astype(np.float64) for part in (one, two))
    if np.ptp(a) == 0:  # all ones, all zeros: many tensors are like that, and none of them says which it is
        return False
    return float(a @ b) > LIKE * float(np.linalg.norm(a) * np.linalg.norm(b))


def _change(before: Checkpoint, name: str, after: Checkpoint, other: str, turned: bool) -> Change:
    one, two = before.tensors[name], after.tensors[other]
    row = Change(name, other, "same", one.shape, (one.dtype, two.dtype), turned)
    a, b = before.numbers(name), after.numbers(other)
    b = b.T if turned else b
    if not turned and a.ndim == 2 and a.shape[0] == a.shape[1] and not np.array_equal(a, b) and np.array_equal(a, b.T):
        row.transposed = True
        return row
    if "c" in (a.dtype.kind, b.dtype.kind):  # a complex number is two
        a, b = (np.ascontiguousarray(part, np.complex64).view(np.float32) for part in (a, b))
    if np.array_equal(a, b, equal_nan=a.dtype.kind == "f" and b.dtype.kind == "f"):
        return row
    a, b = a.astype(np.float32, copy=False), b.astype(np.float32, copy=False)
    delta = b - a
    sizes = [_dot(part, part) ** 0.5 for part in (a, b, delta)]
    cosine = _dot(a, b) / (sizes[0] * sizes[1] or 1.0)
    largest, relative = float(np.abs(delta).max()), sizes[2] / sizes[0] if sizes[0] else float("inf")
    row.figures = {"relative": relative, "largest": largest, "cosine": cosine}
    row.status = _status(row.dtypes, a, delta, relative)
    if row.status == "changed":
        _locate(row, a, delta)
    return row


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product in double precision, some numbers at a time."""
    a, b = np.atleast_1d(a), np.atleast_1d(b)
    step = max(1, PIECE // max(a[:1].size, 1))
    parts = (slice(at, at + step) for at in range(0, len(a), step))
    return sum(float(np.vdot(a[part].astype(np.float64), b[part].astype(np.float64))) for part in parts)


def _status(dtypes: tuple[str, str], a: np.ndarray, delta: np.ndarray, relative: float) -> str:
    coarse = max(dtypes, key=lambda dtype: ROUNDING.get(dtype, 1.0))
    if dtypes[0] == dtypes[1]:
        return "changed"
    if coarse in ROUNDING:
        tiny = 2.0**-24 if coarse == "float16" else 0.0  # below this size numbers of the type lie evenly
        return "cast" if bool((np.abs(delta) <= 1.01 * ROUNDING[coarse] * np.abs(a) + tiny).all()) else "changed"
    return "quantised" if DTYPES[coarse].packed and relative < 0.5 else "changed"


def _locate(row: Change, a: np.ndarray, delta: np.ndarray) -> None:
    """Note the rank of a change, and the rows and columns that it touches."""
    if a.ndim < 2 or not np.isfinite(delta).all():
        row.rows = _places(delta.reshape(-1) != 0)
        return
    matrix = delta.reshape(len(delta), -1)
    row.rows, row.columns = _places((matrix != 0).any(1)), _places((matrix != 0).any(0))
    coarse = max(ROUNDING.get(dtype, ROUNDING["float32"]) for dtype in row.dtypes)
    # An error of rounding is spread evenly over a step, whose standard deviation is its half over √3.
    noise = coarse * float(np.sqrt(np.mean(np.square(a, dtype=np.float64)))) / 3**0.5
    row.full = min(matrix.shape)
    row.rank, row.exact = numerical_rank(matrix, noise)


def _places(changed: np.ndarray) -> dict[str, Any]:
    where = np.flatnonzero(changed)
    return {"count": len(where), "of": len(changed), "first": where[:NAMED].tolist()}
