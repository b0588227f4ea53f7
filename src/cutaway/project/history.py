"""The append-only history, and the tables that follow from it.

Every change is one row: what a subject was before, what it is after. The current tables are written in the same
transaction from that row alone, so they can always be rebuilt (`replayed`) and compared. Undo appends a row with
before and after exchanged that points at the row it undoes; undoing that one brings the change back. Nothing is
ever removed or rewritten.
"""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from cutaway.errors import ProjectError
from cutaway.project.database import TABLES


class Change(NamedTuple):
    """A row of the history about to be appended; `before` and `after` are canonical JSON, None means absent."""

    verb: str
    target: str
    subject: str
    before: str | None
    after: str | None
    command: str
    undoes: int | None = None


def now() -> str:
    """The present moment as ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def append(connection: sqlite3.Connection, change: Change) -> int:
    """Append `change` and bring its current table up to date. Must run inside a write transaction; returns the id."""
    cursor = connection.execute(
        "INSERT INTO history (time, verb, target, subject, before, after, command, undoes) VALUES (?,?,?,?,?,?,?,?)",
        (now(), *change),
    )
    entry = cursor.lastrowid
    assert entry is not None  # an INSERT of one row always has one
    table, key = _table(change.target), _key(change)
    if change.after is None:
        connection.execute(f"DELETE FROM {table} WHERE key = ?", (key,))
    else:
        connection.execute(
            f"INSERT INTO {table} (key, value, entry) VALUES (?, ?, ?) "
            "ON CONFLICT(key) DO UPDATE SET value = excluded.value, entry = excluded.entry",
            (key, change.after, entry),
        )
    return entry


def current(connection: sqlite3.Connection, target: str, key: str) -> str | None:
    """The JSON text `target` holds for `key` at present, None if nothing."""
    row = connection.execute(f"SELECT value FROM {_table(target)} WHERE key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def reverse(connection: sqlite3.Connection, row: sqlite3.Row, command: str) -> dict[str, Any]:
    """Append the inverse of `row` and return `row` as plain data. ProjectError if a later change is in the way."""
    undo = Change(
        verb="redo" if row["verb"] == "undo" else "undo",
        target=row["target"],
        subject=row["subject"],
        before=row["after"],
        after=row["before"],
        command=command,
        undoes=row["id"],
    )
    if current(connection, undo.target, _key(undo)) != undo.before:
        raise ProjectError(
            f"Entry {row['id']} ({row['verb']} {row['subject'][:80]}) cannot be undone, because a later entry changed "
            "the same thing; undo that one first."
        )
    if undo.target == "names" and undo.after is not None:
        refuse_clash(connection, undo.subject, undo.after)
    return described(row, append(connection, undo))


def refuse_clash(connection: sqlite3.Connection, site: str, value: str) -> None:
    """Raise ProjectError if the name `value` (JSON text) already belongs to another site."""
    row = connection.execute("SELECT key FROM names WHERE value = ? AND key <> ?", (value, site)).fetchone()
    if row is not None:
        raise ProjectError(
            f"The name {parsed(value)!r} already belongs to {row['key']}; take another, or rename that first."
        )


def undone_by(rows: Iterable[sqlite3.Row]) -> Iterator[tuple[sqlite3.Row, int | None]]:
    """Each row with the id of the entry that undoes it at present. `rows` come newest first, and so does the result.

    An entry is undone while a live later entry points at it; only later entries decide, so one pass is enough.
    """
    undoing: dict[int, int] = {}
    for row in rows:
        by = undoing.get(row["id"])
        if by is None and row["undoes"] is not None:
            undoing[row["undoes"]] = row["id"]
        yield row, by


def last_to_undo(connection: sqlite3.Connection) -> sqlite3.Row | None:
    """The newest change that stands and is not itself an undo or redo."""
    for row, by in undone_by(_newest_first(connection)):
        if by is None and row["undoes"] is None:
            return row
    return None


def last_to_redo(connection: sqlite3.Connection) -> sqlite3.Row | None:
    """The newest undo that stands, if no new change was made after it."""
    for row, by in undone_by(_newest_first(connection)):
        if by is None and row["verb"] == "undo":
            return row
        if by is None and row["undoes"] is None:
            return None
    return None


def entry_to_undo(connection: sqlite3.Connection, entry: int) -> sqlite3.Row:
    """The row `entry`. Raises ProjectError if there is none, or if it is undone already."""
    for row, by in undone_by(_newest_first(connection)):
        if row["id"] == entry:
            if by is not None:
                raise ProjectError(f"Entry {entry} is already undone by entry {by}; undo {by} to bring it back.")
            return row
    raise ProjectError(f"The history has no entry {entry}; `cutaway show` lists the latest.")


def replayed(connection: sqlite3.Connection) -> dict[str, dict[str, str]]:
    """What the current tables must hold, computed from the history alone."""
    tables: dict[str, dict[str, str]] = {table: {} for table in TABLES}
    for row in connection.execute("SELECT * FROM history ORDER BY id"):
        change = Change(row["verb"], row["target"], row["subject"], row["before"], row["after"], row["command"])
        table, key = tables[_table(change.target)], _key(change)
        if change.after is None:
            table.pop(key, None)
        else:
            table[key] = change.after
    return tables


def parsed(text: str) -> Any:
    """The value of a stored JSON text. Raises ProjectError where the file was damaged."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ProjectError(f"The project holds a damaged entry ({error}); restore it from a copy.") from error


def described(row: sqlite3.Row, by: int | None) -> dict[str, Any]:
    """A row as plain data, with before and after parsed."""
    entry: dict[str, Any] = dict(row)
    for side in ("before", "after"):
        entry[side] = None if row[side] is None else parsed(row[side])
    entry["undone_by"] = by
    return entry


def _newest_first(connection: sqlite3.Connection) -> sqlite3.Cursor:
    return connection.execute("SELECT * FROM history ORDER BY id DESC")


def _table(target: str) -> str:
    # The target comes out of the file, and becomes part of a statement: only our own table names may.
    if target not in TABLES:
        raise ProjectError(
            f"The history speaks of {target!r:.40}, which is no table of a project; restore it from a copy."
        )
    return target


def _key(change: Change) -> str:
    """The row of the current table a change is about. A site has one name but many comments, each under its own id."""
    if change.target != "comments":
        return change.subject
    comment = parsed(change.after or change.before or "null")
    if not isinstance(comment, dict) or not isinstance(comment.get("id"), str):
        raise ProjectError(f"A comment on {change.subject!r:.80} is damaged; restore the project from a copy.")
    return comment["id"]
