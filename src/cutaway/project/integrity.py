"""Is the project sound? And the one repair that is safe at any time: removing tensor files without an entry."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from pathlib import Path

from cutaway.errors import CutawayError
from cutaway.project import history as entries
from cutaway.project import shards
from cutaway.project.database import TABLES, Database, explained


def check(database: Database, folder: Path) -> list[str]:
    """What is wrong, one sentence each; empty means sound. `folder` holds the tensor files, which are all read."""
    with contextlib.ExitStack() as stack:
        try:
            # A writer takes the lock, so that a file which is just being added does not look like an orphan.
            turn = database.reading() if database.readonly else database.writing()
            connection = stack.enter_context(turn)
            problems = _check_tables(connection)
            known = _known(connection)
        except (sqlite3.DatabaseError, KeyError, ValueError, TypeError, RecursionError) as error:
            return [f"The database is damaged ({error}); restore it from a copy."]
        except CutawayError as error:
            return [str(error)]
        orphans = sorted(shards.list_shards(folder) - known)
        if database.readonly:
            # Without the lock a young file may belong to an entry that is being committed right now.
            orphans = [digest for digest in orphans if _is_old(shards.shard_path(folder, digest))]
        problems += [f"Tensor file {digest} belongs to no entry; opening the project removes it." for digest in orphans]
    for digest in sorted(known):
        problems += _check_shard(folder, digest)
    return problems


def sweep_orphans(database: Database, folder: Path) -> None:
    """Remove tensor files without an entry: a writer publishes and commits under one lock, which is held here."""
    rows = database.read("SELECT digest FROM shards")
    if not shards.list_shards(folder) - {row["digest"] for row in rows}:
        return
    with database.writing() as connection:
        for digest in shards.list_shards(folder) - _known(connection):
            shards.shard_path(folder, digest).unlink(missing_ok=True)


def _known(connection: sqlite3.Connection) -> set[str]:
    return {row["digest"] for row in connection.execute("SELECT digest FROM shards")}


def _is_old(path: Path) -> bool:
    return path.exists() and path.stat().st_mtime < time.time() - shards.TEMPORARY_SECONDS


def _check_tables(connection: sqlite3.Connection) -> list[str]:
    """SQLite's own check, whether the current tables are what the history says, and whether every tensor is known."""
    sound = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    problems = [] if sound == ["ok"] else [f"SQLite reports: {line}." for line in sound]
    replayed = entries.replayed(connection)
    for table in TABLES:
        found = {row["key"]: row["value"] for row in connection.execute(f"SELECT key, value FROM {table}")}
        wrong = sorted(k for k in found.keys() | replayed[table].keys() if found.get(k) != replayed[table].get(k))
        problems += [f"The table {table} disagrees with the history about {key!r:.80}." for key in wrong]
    known = _known(connection)
    for table in ("claims", "records"):
        for key, text in replayed[table].items():
            lost = set(json.loads(text)["tensors"].values()) - known
            problems += [f"{key} refers to the unknown tensor file {digest!r:.80}." for digest in sorted(lost)]
    return problems


def _check_shard(folder: Path, digest: str) -> list[str]:
    try:
        with explained(folder.parent):
            path = shards.shard_path(folder, digest)
            if not path.is_file():
                return [f"Tensor file {digest} is missing; restore it from a copy of the project."]
            if shards.digest_of(path) != digest:
                return [f"Tensor file {digest} is damaged: its content has another hash; restore it from a copy."]
            shards.read_shard(path)
    except CutawayError as error:
        return [str(error)]
    return []
