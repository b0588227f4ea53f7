"""Collecting: the values of sites over a data set, to a folder, as fast as the network can be run up to them.

Batches are a function of the data alone and each is run from a seed of its own, so a collection that was cut off and
taken up again gives the very bytes that one without a break gives.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..errors import InputError, ResourceError
from ..formats.reading import read_json_file
from ..run.network import Network
from .data import Batch, Data, content, data_of
from .moments import Sites, Value
from .shards import LIMIT, STORED, Shard, gaps, sound_shards, sweep, write_shard
from .store import DTYPES, MANIFEST, SCHEMA, VERSION, Activations, read_manifest, write_manifest

Progress = Callable[[str, int, int], None]
_ROOM = 64 << 20  # bytes that a disk keeps free beside what is collected


@dataclass(frozen=True)
class Forecast:
    """What collecting would take: `seconds` from one batch that was run, `bytes` on disk, `passes` of the network.
    `free` are the bytes that the disk has. Texts of different lengths are reckoned by their tokens."""

    rows: int
    examples: int
    passes: int
    bytes: int
    seconds: float
    free: int
    sites: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)


@dataclass(frozen=True)
class _Job:
    """A collection as it was asked for."""

    net: Network
    data: Data
    sites: Sites
    folder: Path
    dtype: str
    seed: int
    skip_first: int
    about: dict[str, Any]


def collect(
    net: Network, data: Any, sites: str | Sequence[str], folder: str | Path, *, context: int | None = None,
    batch: int | None = None, dtype: str = "float16", seed: int = 0, skip_first: int = 0, limit: int | None = None,
    progress: Progress | None = None,
) -> Activations:  # fmt: skip
    """Write the values of `sites` over `data` to `folder`, and open them.

    `data`: what `data_of` takes: texts, running text, tensors, a Path, batches. `sites`: any, one or several; a value
    [batch, pos, d] becomes batch × pos rows of d numbers, an image [batch, channel, height, width] a row of channels
    for each of its places. A site with `@*` (`L0.rnn@*.out`) stands for all steps of a recurrence. `skip_first` leaves
    out that many first positions. `dtype` is that on disk: float16, bfloat16 or float32. `seed` is for networks that
    draw random numbers. `progress(stage, done, of)` is told of every batch.

    When it is interrupted or killed, the same call goes on where it stopped. Raises InputError for values that are not
    finite or vary in width, and for a folder of something else; ResourceError where the disk is too small.
    """
    job = _job(net, data, sites, folder, context, batch, dtype, seed, skip_first, limit)
    with _alone(job.folder):
        return _collected(job, progress or (lambda stage, done, of: None))


def forecast_collect(
    net: Network, data: Any, sites: str | Sequence[str], folder: str | Path = ".", *, context: int | None = None,
    batch: int | None = None, dtype: str = "float16", seed: int = 0, skip_first: int = 0, limit: int | None = None,
) -> Forecast:  # fmt: skip
    """What `collect` would take, from one batch; nothing is written. Raises InputError for data of unknown length."""
    job = _job(net, data, sites, folder, context, batch, dtype, seed, skip_first, limit)
    if job.data.count is None:
        raise InputError("Data that come in batches have no known length, so nothing can be forecast; give tensors.")
    first = _first(job)
    _values(job, first, 0)  # the sites are looked for here
    start = time.perf_counter()
    values = _values(job, first, 0)
    seconds = time.perf_counter() - start
    rows, size, share = _extent(job, first, values)
    passes = sum(1 for _ in job.data.batches())
    told = _sites_told(values)
    notes = [*job.data.notes, *_whole_note(job)]
    return Forecast(rows, job.data.count, passes, size, seconds * share, _free(job.folder), told, notes)


def _job(
    net: Network, data: Any, sites: str | Sequence[str], folder: str | Path, context: int | None, batch: int | None,
    dtype: str, seed: int, skip_first: int, limit: int | None,
) -> _Job:  # fmt: skip
    if dtype not in DTYPES:
        raise InputError(f"dtype is '{dtype}'; rows are stored as {', '.join(DTYPES)}.")
    if skip_first < 0:
        raise InputError(f"skip_first is {skip_first}; give 0 or more.")
    found = data_of(net, data, context, batch, limit)
    names = [sites] if isinstance(sites, str) else list(sites)
    about = {"batch": batch, "limit": limit}
    return _Job(net, found, Sites(net, names), Path(folder), dtype, seed, skip_first, about)


# ---- the run


def _collected(job: _Job, progress: Progress) -> Activations:
    sweep(job.folder)
    shards, wrong = sound_shards(job.folder)
    for why in wrong:
        progress(f"renewed: {why}", 0, 1)
    manifest: dict[str, Any] = {}
    writer: _Writer | None = None
    done, passed = 0, hashlib.sha256()  # the latter of data whose hash is not known before
    holes = gaps(shards, job.data.count)
    for number, item in enumerate(job.data.batches()):
        last = done + len(item.numbers)
        wanted = [(max(low, done), min(last, last if high is None else high)) for low, high in holes]
        wanted = [(low, high) for low, high in wanted if low < high]
        if wanted or writer is None:
            values = _values(job, item, number)
            if writer is None:
                manifest = _begin(job, item, values, shards)
                writer = _Writer(job, shards, manifest["inputs"])
        if not job.data.hash:
            digests = _digests(item)
            passed.update(content(digests))
            _check_same(digests, done, shards)
        for low, high in wanted:
            writer.add(item, values, done, low, high, [end for _, end in holes])
        done = last
        progress("collect", done, job.data.count or 0)
    if writer is None:
        raise InputError("The data hold no batch; give at least one.")
    writer.flush()
    if shards and (last := max(shard.last for shard in shards)) > done:
        raise InputError(f"The data end after {done:,} examples, and {last:,} were collected; they are other data.")
    _finish(job, manifest, sorted(shards, key=lambda shard: shard.first), passed)
    return Activations(job.folder)


def _values(job: _Job, item: Batch, number: int) -> dict[str, Value]:
    """The values of a batch, the first positions left out."""
    count = len(item.numbers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed * 1_000_003 + number)
        try:
            found = job.sites.values(item.args, item.kwargs, count)
        except InputError as error:
            low, high = int(item.numbers[0]), int(item.numbers[-1])
            raise InputError(f"Examples {low:,} to {high:,}: {error}") from error
    if job.skip_first:
        found = {site: _skipped(site, value, job.skip_first) for site, value in found.items()}
    sizes = {site: value.rows.shape[1:-1] for site, value in found.items()}
    first, *others = sizes
    if odd := [site for site in others if sizes[site] != sizes[first]]:
        raise InputError(
            f"'{first}' has {_grid(sizes[first])} an example and '{odd[0]}' {_grid(sizes[odd[0]])}, and row i of every "
            "site is one moment; collect them into folders of their own."
        )
    return found


def _skipped(site: str, value: Value, count: int) -> Value:
    if "pos" not in value.grid:
        raise InputError(f"'{site}' has no positions, so none can be left out; drop skip_first.")
    axis = 1 + value.grid.index("pos")
    length = value.rows.shape[axis]
    if length <= count:
        raise InputError(f"'{site}' has {length} positions, and skip_first={count} leaves none.")
    return value._replace(rows=value.rows.narrow(axis, count, length - count))


def _grid(sizes: Sequence[int]) -> str:
    return f"{' × '.join(map(str, sizes))} rows" if sizes else "one row"


class _Writer:
    """Cuts what is collected into shards: at the same examples, wherever a collection begins."""

    def __init__(self, job: _Job, shards: list[Shard], inputs: list[str]) -> None:
        self.job, self.shards, self.inputs = job, shards, inputs
        self._kinds: dict[str, torch.dtype] = {}
        self.dtype = DTYPES[job.dtype]
        self.widths: dict[str, int] = {}
        self._pieces: dict[str, list[Tensor]] = {}
        self._from = self._to = self._rows = self._bytes = 0

    def add(
        self, item: Batch, values: dict[str, Value], start: int, low: int, high: int, ends: list[int | None]
    ) -> None:
        """The examples from `low` to `high` of a batch whose first is number `start`."""
        stored = {site: self._stored(site, value.rows, item) for site, value in values.items()}
        each = sum(rows[0].numel() * self.dtype.itemsize for rows in stored.values())
        while low < high:
            if low != self._to:
                self.flush()
                self._from = self._to = low
            room = max((LIMIT - self._bytes) // max(each, 1), 0 if self._bytes else 1)
            count = min(high - low, room)
            if count:
                self._keep(item, stored, low - start, count)
                low += count
                self._to, self._bytes = low, self._bytes + count * each
            if room == 0 or low in ends:
                self.flush()

    def _stored(self, site: str, rows: Tensor, item: Batch) -> Tensor:
        """Values as they lie on disk. Raises InputError for those that cannot."""
        width = self.widths.setdefault(site, rows.shape[-1])
        if rows.shape[-1] != width:
            raise InputError(
                f"'{site}' has vectors of {width} numbers before and of {rows.shape[-1]} in example "
                f"{int(item.numbers[0]):,}; rows of different widths cannot be collected together."
            )
        made = rows.to("cpu", self.dtype)
        # One sum shows whether a number is infinite or none; it may also overflow by itself, which a closer look tells.
        if not bool(made.sum(dtype=torch.float32).isfinite()) and not bool(made.isfinite().all()):
            place = (~made.isfinite()).nonzero()[0].tolist()
            number = float(rows[tuple(place)])
            where = f"'{site}' in example {int(item.numbers[place[0]]):,}, position {_position(place[1:-1])}"
            if abs(number) < float("inf"):
                raise InputError(
                    f"{where} holds {number:.6g}, which is too large for {self.job.dtype}; collect with "
                    "dtype='bfloat16' or 'float32'."
                )
            raise InputError(f"{where} is not finite; find out why, or leave the example out.")
        return made

    def _keep(self, item: Batch, stored: dict[str, Tensor], at: int, count: int) -> None:
        pieces: dict[str, Tensor] = {}
        for site, rows in stored.items():
            part = rows[at : at + count].reshape(-1, rows.shape[-1])
            pieces[f"values/{site}"] = part.contiguous()
            grid, added = rows.shape[1:-1], len(part)
        pieces["examples/number"] = item.numbers[at : at + count]
        if not self.job.data.hash:
            pieces["examples/digest"] = _digests(item)[at : at + count]
        pieces["examples/grid"] = torch.tensor([list(grid)] * count).reshape(count, len(grid)).long()
        inputs = item.inputs()
        for name in self.inputs:
            if name not in inputs:
                raise InputError(f"The input '{name}' is missing from example {int(item.numbers[0]):,} on.")
            part = inputs[name][at : at + count].detach().to("cpu", self._kinds.setdefault(name, inputs[name].dtype))
            pieces[f"inputs/{name}"] = part.flatten()
            pieces[f"inputs/{name}/shape"] = torch.tensor([list(part.shape[1:])] * count).reshape(count, -1).long()
        for name, piece in pieces.items():
            self._pieces.setdefault(name, []).append(piece)
        self._rows += added

    def flush(self) -> None:
        """Write what waits as a shard."""
        if not self._pieces:
            return
        tensors: dict[str, Sequence[Tensor]] = dict(self._pieces)
        for site in self.widths:
            pieces = self._pieces[f"values/{site}"]
            sums = torch.zeros(self.widths[site], dtype=torch.float64)
            norms = torch.zeros(2, dtype=torch.float64)
            for piece in pieces:
                rows = piece.float()
                squares = rows.square().sum(1)
                sums += rows.sum(0)
                norms += torch.stack([squares.sqrt().sum(), squares.sum()]).double()
            tensors[f"sum/{site}"], tensors[f"norms/{site}"] = [sums], [norms]
        self.shards.append(write_shard(self.job.folder, self._from, self._to, self._rows, tensors))
        self._pieces = {}
        self._from, self._rows, self._bytes = self._to, 0, 0


def _position(place: list[int]) -> str:
    return ", ".join(map(str, place)) or "0"


def _kept(item: Batch, values: dict[str, Value]) -> list[str]:
    """Which inputs are stored beside the values: ids, and others that are no more numbers than the values."""
    room = sum(value.rows.numel() for value in values.values())
    return [
        name for name, tensor in item.inputs().items()
        if tensor.dtype in STORED and (not tensor.is_floating_point() or tensor.numel() <= room)
    ]  # fmt: skip


def _digests(item: Batch) -> Tensor:
    """A number for each example that another example has by chance once in 2**63."""
    inputs = item.inputs()
    told = "".join(f"|{name}|{tensor.dtype}|{tuple(tensor.shape[1:])}" for name, tensor in inputs.items()).encode()
    found = []
    for place in range(len(item.numbers)):
        digest = hashlib.sha256(told)
        for tensor in inputs.values():
            digest.update(content(tensor[place]))
        found.append(int.from_bytes(digest.digest()[:8], "little") >> 1)
    return torch.tensor(found)


def _check_same(digests: Tensor, start: int, shards: list[Shard]) -> None:
    """Raises InputError where examples that are collected already do not come again."""
    for shard in shards:
        low, high = max(shard.first, start), min(shard.last, start + len(digests))
        if low >= high:
            continue
        there = torch.from_numpy(shard.read("examples/digest").copy())
        if (
            odd := (there[low - shard.first : high - shard.first] != digests[low - start : high - start])
            .nonzero()
            .tolist()
        ):
            raise InputError(
                f"Example {low + odd[0][0]:,} is not the one that was collected before, so these are other data; "
                "collect into another folder."
            )


# ---- manifest, disk, folder


def _begin(job: _Job, item: Batch, values: dict[str, Value], shards: list[Shard]) -> dict[str, Any]:
    """The manifest of what is asked for, checked against the folder's, and the disk checked against it."""
    made: dict[str, Any] = {
        "schema": SCHEMA, "version": VERSION, "complete": False, "hash": job.data.hash,
        "network": {"name": job.net.name, "fingerprint": job.net.fingerprint, "source": job.net.source},
        "sites": _sites_told(values), "rows": list(next(iter(values.values())).grid), "dtype": job.dtype,
        "skip_first": job.skip_first, "seed": job.seed, **job.about, "data": job.data.about,
        "inputs": _kept(item, values),
        "shards": [], "counts": {}, "normalisation": {}, "notes": job.data.notes,
        "versions": {"cutaway": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip
    begun = (job.folder / MANIFEST).exists()
    if begun:
        _compare(job, made, read_manifest(job.folder))
    elif shards:
        raise InputError(f"'{job.folder}' holds shards and no {MANIFEST}; collect into another folder.")
    if job.data.count is not None:
        have = sum(shard.path.stat().st_size for shard in shards)
        need, free = _extent(job, item, values)[1] - have, _free(job.folder)
        if need + _ROOM > free:
            raise ResourceError(
                f"About {need >> 20:,} MiB are needed at '{job.folder}' and {free >> 20:,} MiB are free; make room, or "
                "give a limit, fewer sites or another disk."
            )
    if not begun:
        write_manifest(job.folder, made)
    return made


def _sites_told(values: dict[str, Value]) -> list[dict[str, Any]]:
    return [{"site": site, "width": value.rows.shape[-1], "axis": value.axis} for site, value in values.items()]


# What must be the same for a collection to be taken up again, and how its being another is said.
_ASKED = {
    "network": "of another network", "data": "of another kind of data", "sites": "of other sites",
    "rows": "of other rows", "dtype": "of another dtype", "skip_first": "with another skip_first",
    "batch": "in other batches", "limit": "with another limit", "seed": "with another seed",
    "inputs": "of other inputs", "hash": "of other data",
}  # fmt: skip


def _compare(job: _Job, made: dict[str, Any], there: dict[str, Any]) -> None:
    """Raises InputError for a folder that holds another collection."""
    for key, said in _ASKED.items():
        one, two = made.get(key), there.get(key)
        if key in ("network", "data"):
            part = "fingerprint" if key == "network" else "kind"
            one, two = (where[key].get(part) for where in (made, there))
        if key == "hash" and (not one or not two):
            continue  # of data that are known when they have come
        if one != two:
            told = {"hash": "", "network": f" ('{there['network'].get('name')}')", "data": f" ({two})"}
            told["sites"] = f" ({', '.join(str(site['site']) for site in there['sites'])})"
            raise InputError(
                f"'{job.folder}' holds a collection {said}{told.get(key, f' ({two})'):.200}; collect into another "
                "folder, or delete this one."
            )


def _finish(job: _Job, manifest: dict[str, Any], shards: list[Shard], passed: Any) -> None:
    """The manifest of a complete collection."""
    rows = 0
    told = []
    figures: dict[str, list[Tensor]] = {}
    for shard in shards:
        size = shard.path.stat().st_size
        told.append({
            "file": shard.path.name, "sha256": shard.digest, "bytes": size, "examples": [shard.first, shard.last],
            "rows": [rows, rows + shard.rows],
        })  # fmt: skip
        rows += shard.rows
        for site in job.sites.names:
            found = torch.cat([torch.from_numpy(shard.read(f"{part}/{site}").copy()) for part in ("norms", "sum")])
            figures.setdefault(site, []).append(found)
    sums = {site: torch.stack(parts).sum(0) / rows for site, parts in figures.items()}
    hash_ = job.data.hash or passed.hexdigest()
    if there := read_json_file(job.folder / MANIFEST).get("hash"):
        if there != hash_:
            raise InputError(f"'{job.folder}' holds a collection of other data; collect into another folder.")
    manifest |= {
        "complete": True, "hash": hash_, "shards": told, "notes": [*job.data.notes, *_whole_note(job)],
        "counts": {
            "rows": rows, "examples": shards[-1].last, "shards": len(shards),
            "bytes": sum(one["bytes"] for one in told),
        },
        "normalisation": {
            site: {"mean_norm": float(s[0]), "mean_square_norm": float(s[1]), "mean": s[2:].tolist()}
            for site, s in sums.items()
        },
    }  # fmt: skip
    write_manifest(job.folder, manifest)


def _whole_note(job: _Job) -> list[str]:
    found = job.sites.whole
    told = "a site lies inside an op, or the network takes another way through them"
    return [f"{found} batches were run to the end, as {told}"] if found else []


def _extent(job: _Job, item: Batch, values: dict[str, Value]) -> tuple[int, int, float]:
    """Rows and bytes of the whole collection by those of one batch, and how many times that batch's work it is."""
    first = next(iter(item.args), None)
    tokens = len(item.numbers)
    if isinstance(first, Tensor) and "context" in job.data.about:
        tokens = first.numel()
    share = job.data.units / tokens
    rows = next(iter(values.values())).rows[..., 0].numel()
    size = sum(value.rows.numel() for value in values.values()) * DTYPES[job.dtype].itemsize
    inputs = sum(item.inputs()[name].nbytes for name in _kept(item, values))
    return round(rows * share), round((size + inputs) * share), share


def _free(folder: Path) -> int:
    """Bytes that the disk of a folder has, which need not be there yet."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _first(job: _Job) -> Batch:
    for item in job.data.batches():
        return item
    raise InputError("The data hold no batch; give at least one.")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make a folder and hold it, so that no other process collects into it at the same time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ResourceError(f"'{folder}' cannot be written ({error.strerror or error}).") from error
    with lock:
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ResourceError(f"Another process is collecting into '{folder}'; wait for it to end.") from error
        yield
