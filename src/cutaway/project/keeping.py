"""Claims and records with their arrays: how they get in, under which id, and how an id finds them again."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import CutawayError, ProjectError
from cutaway.project import history as entries
from cutaway.project import integrity, shards
from cutaway.project.database import Database, explained
from cutaway.project.history import Change
from cutaway.project.texts import canonical_json, clean_line

ID_DIGITS = 12
PREFIX_DIGITS = 4  # an id may be shortened to this many digits while it stays the only one


def keep(
    database: Database,
    folder: Path,
    target: str,
    kind: str,
    body: dict[str, Any],
    tensors: Mapping[str, np.ndarray] | None,
) -> str:
    """Store `body` and `tensors` (files go to `folder`) in `target` and return the id, a hash of all three.

    What is there already is not stored twice. Raises ProjectError for what cannot be stored, ResourceError if the
    disk is full; nothing is left behind then.
    """
    canonical_json(body, kind)  # refuses a bad body before any array is written
    with explained(database.path.parent):
        staged = shards.stage(folder, tensors) if tensors else []
        try:
            digests = {name: shard.digest for shard in staged for name in shard.names}
            value = {"kind": kind, "body": body, "tensors": digests}
            key = hashlib.sha256(canonical_json(value, kind).encode()).hexdigest()[:ID_DIGITS]
            after = canonical_json({**value, "added": entries.now()}, kind)
            _commit(database, folder, Change(_verb(target), target, key, None, after, _origin(body)), staged)
        finally:
            shards.discard(staged)
    return key


def find(database: Database, targets: tuple[str, ...], id: str) -> tuple[str, dict[str, Any]]:
    """The kept thing whose id is, or alone begins with, `id`. Raises ProjectError with near ids otherwise."""
    id = clean_line(id, "id")
    for target in targets:
        for row in database.read(f"SELECT value FROM {target} WHERE key = ?", (id,)):
            return id, _sound(target, entries.parsed(row["value"]))
    known = [row["key"] for target in targets for row in database.read(f"SELECT key FROM {target}")]
    begins = [key for key in known if key.startswith(id)]
    if len(begins) == 1 and len(id) >= PREFIX_DIGITS:
        return find(database, targets, begins[0])
    near = begins[:3] or difflib.get_close_matches(id, known, n=3, cutoff=0.4)
    advice = f"near ones are {', '.join(near)}" if near else f"there are {len(known)} in all, none with a similar id"
    kinds = " or ".join(target.removesuffix("s") for target in targets)
    raise ProjectError(f"{database.path.parent} has no {kinds} {id!r:.80}; {advice}.")


def rows(database: Database, target: str) -> list[tuple[str, Any]]:
    """All keys and parsed values of a current table, in the order they were last changed."""
    found = database.read(f"SELECT key, value FROM {target} ORDER BY entry")
    return [(row["key"], _sound(target, entries.parsed(row["value"]))) for row in found]


# What each table's values look like; a file from elsewhere may hold anything.
_SHAPES: dict[str, dict[str, type]] = {
    "claims": {"body": dict, "tensors": dict, "added": str},
    "records": {"body": dict, "tensors": dict, "added": str, "kind": str},
    "comments": {"id": str, "site": str, "text": str, "time": str},
}


def _sound(target: str, value: Any) -> Any:
    for key, kind in _SHAPES.get(target, {}).items():
        if not isinstance(value, dict) or not isinstance(value.get(key), kind):
            raise ProjectError(
                f"The table {target} holds a damaged value (no {key!r}); restore the project from a copy."
            )
    return value


def _commit(database: Database, folder: Path, change: Change, staged: list[shards.StagedShard]) -> None:
    """Publish the shards and append the entry, under one lock."""
    try:
        with database.writing() as connection:
            if entries.current(connection, change.target, change.subject) is not None:
                return
            for shard in staged:
                shards.publish(folder, shard)
            entry = entries.append(connection, change)
            connection.executemany(
                "INSERT OR IGNORE INTO shards (digest, size, entry) VALUES (?, ?, ?)",
                [(shard.digest, shard.size, entry) for shard in staged],
            )
    except BaseException:
        # The entry is not there, so its files must go. If that fails as well, the next writer does it at opening.
        with contextlib.suppress(CutawayError, OSError):
            integrity.sweep_orphans(database, folder)
        raise


def _verb(target: str) -> str:
    return f"add_{target.removesuffix('s')}"


def _origin(body: dict[str, Any]) -> str:
    """The command line a kept result came from, where its provenance tells."""
    provenance = body.get("provenance")
    command = provenance.get("command") if isinstance(provenance, dict) else None
    return command if isinstance(command, str) else ""
