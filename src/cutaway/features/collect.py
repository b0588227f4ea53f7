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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import InputError, ResourceError
from ..run.network import Network
from .cutting import Cutter, check_come_again, digests, kept, left_out
from .data import Batch, Data, content, data_of
from .manifest import DTYPES, MANIFEST, SCHEMA, VERSION, check_same, completed, write_manifest
from .moments import Sites, Value, of_one_moment
from .shards import Shard, gaps, sound_shards, sweep
from .store import Activations

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
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)


@dataclass(frozen=True)
class _Job:
    """A collection as it was asked for; `batch` and `limit` as they were given."""

    net: Network
    data: Data
    sites: Sites
    folder: Path
    dtype: str
    seed: int
    skip_first: int
    batch: int | None
    limit: int | None


def collect(
    net: Network, data: Any, sites: str | Sequence[str], folder: str | Path, *, context: int | None = None,
    batch: int | None = None, dtype: str = "float16", seed: int = 0, skip_first: int = 0, limit: int | None = None,
    progress: Progress | None = None,
) -> Activations:  # fmt: skip
    """Write the values of `sites` over `data` to `folder`, and open them.

    `data`: what `data_of` takes: texts, running text, tensors, the path of a file, batches. `sites`: any, one or
    several; a value [batch, pos, d] becomes batch × pos rows of d numbers, an image [batch, channel, height, width] a
    row of channels for each of its places. A site with `@*` (`L0.rnn@*.out`) stands for all steps of a recurrence.
    `skip_first` leaves out that many first positions. `dtype` is that on disk: float16, bfloat16 or float32. `seed` is
    for networks that draw random numbers. `progress(stage, done, of)` is told of every batch.

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
    first = next(job.data.batches())
    _values(job, first, 0)  # the sites are looked for here
    start = time.perf_counter()
    values = _values(job, first, 0)
    seconds = time.perf_counter() - start
    rows, size, share = _extent(job, first, values)
    passes = sum(1 for _ in job.data.batches())
    return Forecast(
        rows, job.data.count, passes, size, seconds * share, _free(job.folder), _told(values),
        [*job.data.notes, *left_out(first, values, job.data.count), *_whole(job)],
    )  # fmt: skip


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
    return _Job(net, found, Sites(net, names), Path(folder), dtype, seed, skip_first, batch, limit)


# ---- the run


def _collected(job: _Job, progress: Progress) -> Activations:
    sweep(job.folder)
    shards, wrong = sound_shards(job.folder)
    for why in wrong:
        progress(f"renewed: {why}", 0, 1)
    holes = gaps(shards, job.data.count)
    manifest: dict[str, Any] = {}
    cutter: Cutter | None = None
    done, seen = 0, hashlib.sha256()  # the latter of data whose hash is not known before they come
    for number, item in enumerate(job.data.batches()):
        last = done + len(item.numbers)
        parts = [(max(low, done), min(last, high or last), high is not None and high <= last) for low, high in holes]
        parts = [part for part in parts if part[0] < part[1]]
        values = _values(job, item, number) if parts or cutter is None else {}
        if cutter is None:
            manifest = _begun(job, item, values, shards)
            cutter = Cutter(job.folder, DTYPES[job.dtype], not job.data.hash, manifest["inputs"], shards)
        if not job.data.hash:
            found = digests(item)
            seen.update(content(found))
            check_come_again(found, done, shards)
        cutter.add(item, values, done, parts)
        done = last
        progress("collect", done, job.data.count or 0)
    if cutter is None:
        raise InputError("The data hold no batch; give at least one.")
    cutter.flush()
    shards.sort(key=lambda shard: shard.first)
    if shards[-1].last > done:
        raise InputError(
            f"The data end after {done:,} examples and '{job.folder}' holds {shards[-1].last:,}, so these are other "
            "data; collect into another folder."
        )
    manifest |= {"hash": job.data.hash or seen.hexdigest(), "notes": [*manifest["notes"], *_whole(job)]}
    check_same(job.folder, manifest)
    write_manifest(job.folder, completed(manifest, shards))
    return Activations(job.folder)


def _values(job: _Job, item: Batch, number: int) -> dict[str, Value]:
    """The values of batch `number`, run from a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed * 1_000_003 + number)
        try:
            found = job.sites.values(item.args, item.kwargs, len(item.numbers))
        except InputError as error:
            raise InputError(f"Examples {item.numbers[0]:,} to {item.numbers[-1]:,}: {error}") from error
    return of_one_moment(found, job.skip_first)


def _begun(job: _Job, item: Batch, values: dict[str, Value], shards: list[Shard]) -> dict[str, Any]:
    """The manifest of what is asked for, checked against the folder's, and the disk checked against it."""
    made: dict[str, Any] = {
        "schema": SCHEMA, "version": VERSION, "complete": False, "hash": job.data.hash,
        "network": {"name": job.net.name, "fingerprint": job.net.fingerprint, "source": job.net.source},
        "sites": _told(values), "rows": list(next(iter(values.values())).grid), "dtype": job.dtype,
        "skip_first": job.skip_first, "seed": job.seed, "batch": job.batch, "limit": job.limit, "data": job.data.about,
        "inputs": kept(item, values, job.data.count), "shards": [], "counts": {}, "normalisation": {},
        "notes": [*job.data.notes, *left_out(item, values, job.data.count)],
        "versions": {"cutaway": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip
    begun = (job.folder / MANIFEST).exists()
    if begun:
        check_same(job.folder, made)
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


def _told(values: dict[str, Value]) -> list[dict[str, Any]]:
    return [{"site": site, "width": value.rows.shape[-1], "axis": value.axis} for site, value in values.items()]


def _whole(job: _Job) -> list[str]:
    why = "a site lies inside an op, or the network took another way than on the first examples"
    return [f"batches were run to the end, as {why}"] * bool(job.sites.whole)


def _extent(job: _Job, item: Batch, values: dict[str, Value]) -> tuple[int, int, float]:
    """Rows and bytes of the whole collection by those of one batch, and how many times that batch's work it is."""
    units = item.args[0].numel() if "context" in job.data.about else len(item.numbers)  # tokens, or examples
    share = job.data.units / units
    rows = next(iter(values.values())).rows[..., 0].numel()
    size = sum(value.rows.numel() for value in values.values()) * DTYPES[job.dtype].itemsize
    inputs = sum(item.inputs()[name].nbytes for name in kept(item, values, job.data.count))
    return round(rows * share), round((size + inputs) * share), share


def _free(folder: Path) -> int:
    """Bytes that the disk of a folder has, which need not be there yet."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


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
