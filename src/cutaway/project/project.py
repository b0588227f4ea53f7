"""A project on disk: `NAME.cutaway/`, a folder with one SQLite file and immutable tensor files beside it.

    ioi.cutaway/
        project.db                      names, comments, claims, records and the whole history (SQLite, WAL)
        tensors/<sha256>.safetensors    arrays, each file named by the hash of its bytes

Why a folder and not a single file? Arrays are what makes a project large, and they never change once computed. As
files of their own they are memory-mapped by any process (83,000 random rows a second were measured on warm shards,
against 22 from a compressed table), copied by rsync only once, shared by hard links, and checked by their name alone.
Inside the database the same bytes would be copied through the log at every write and read back whole. Everything that
does change is small and sits in one SQLite file, where a killed process loses nothing it acknowledged (60 of 60 kills
survived when this was measured; rewriting a JSON file survived 10 of 40, and torch.save 2 of 15), any number
of processes read while one writes, and writers take turns instead of being refused. To mail a project, zip the folder
while nobody has it open. A project belongs on a local disk: SQLite's log needs shared memory.

Every change is one entry of an append-only history. A new tensor file is complete and flushed before the entry that
mentions it is committed, so a crash leaves at most a file nobody refers to; the next writer removes it.
"""

from __future__ import annotations

import difflib
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from cutaway.errors import ProjectError
from cutaway.project import history as entries
from cutaway.project import integrity, keeping, shards
from cutaway.project.database import SCHEMA_VERSION, Database, explained
from cutaway.project.history import Change
from cutaway.project.texts import NAME_LIMIT, canonical_json, clean_line, clean_text

SUFFIX = ".cutaway"
_OURS = ("id", "added", "tensor_names")  # keys of a claim the project sets; ignored when a claim is handed back


class StoredClaim(Protocol):
    """What `Project.add` needs of a claim."""

    tensors: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data with at least statement, verdict and provenance."""


class Project:
    """An open project. Use it as a context manager, or call `close`.

    Every method may raise ProjectError (bad input, damaged or foreign folder, locked for too long) and every change
    ResourceError (disk full); a change that raised left nothing behind.
    """

    path: Path

    def __init__(self, path: str | Path, *, create: bool = True, readonly: bool = False) -> None:
        """Open the project at `path` (the suffix .cutaway is added if missing), making it if `create` allows."""
        self.path = _project_path(path)
        self._tensors = self.path / "tensors"
        with explained(self.path):
            _prepare_folder(self.path, create=create and not readonly)
            self._database = Database(self.path, create=create, readonly=readonly)
            if not readonly:
                try:
                    self._tensors.mkdir(exist_ok=True)
                    for folder in (self.path, self._tensors):
                        shards.sweep_temporaries(folder)
                    integrity.sweep_orphans(self._database, self._tensors)
                except BaseException:
                    self._database.close()
                    raise

    def __enter__(self) -> Self:
        """The project itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the project."""
        self.close()

    def __repr__(self) -> str:
        return f"Project({str(self.path)!r})"

    def close(self) -> None:
        """Close the project; arrays already handed out stay usable."""
        self._database.close()

    # ---- changes -------------------------------------------------------------------------------------------------

    def add_model(self, fingerprint: str, facts: dict[str, Any]) -> None:
        """Keep `facts` (name, class, parameters, hash, source) about the network `fingerprint`; idempotent."""
        fingerprint = clean_line(fingerprint, "model fingerprint")
        after = canonical_json(_mapping(facts, "model facts"), "model facts")
        self._set("add_model", "models", fingerprint, after, f"add-model {shlex.quote(fingerprint)}")

    def add(self, claim: StoredClaim) -> str:
        """Keep a claim as `cutaway.verify` returns it, with its arrays; returns its id."""
        return self.add_claim(claim.to_dict(), claim.tensors)

    def add_claim(self, claim: dict[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> str:
        """Keep a claim with its arrays and return its id, a short hash of the content; idempotent.

        `claim` is JSON-able and has at least `statement`, `verdict` and `provenance`; the keys id, added and
        tensor_names belong to the project and are ignored.
        """
        body = {key: value for key, value in _mapping(claim, "claim").items() if key not in _OURS}
        for key in ("statement", "verdict", "provenance"):
            if key not in body:
                raise ProjectError(f"The claim has no {key!r}; a claim needs statement, verdict and provenance.")
        clean_text(body["statement"], "claim's statement")
        return keeping.keep(self._database, self._tensors, "claims", "claim", body, tensors)

    def add_record(self, kind: str, data: dict[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> str:
        """Keep any other result (`kind`: run, scores, sweep …) with its arrays and return its id; idempotent."""
        kind, body = clean_line(kind, "record's kind", 100), _mapping(data, "record")
        return keeping.keep(self._database, self._tensors, "records", kind, body, tensors)

    def rename(self, site: str, name: str) -> None:
        """Give `site` a name that no other site has; an empty name takes its name away."""
        site = clean_line(site, "site")
        after = canonical_json(clean_line(name, "name", NAME_LIMIT), "name") if name != "" else None
        self._set("rename", "names", site, after, f"rename {shlex.quote(site)} {shlex.quote(name)}")

    def comment(self, site: str, text: str) -> None:
        """Add a comment (line breaks allowed) to `site`."""
        site, text = clean_line(site, "site"), clean_text(text, "comment")
        value = {"id": secrets.token_hex(6), "site": site, "text": text, "time": entries.now()}
        after = canonical_json(value, "comment")
        command = self._command(f"comment {shlex.quote(site)} {shlex.quote(text)}")
        with self._database.writing() as connection:
            entries.append(connection, Change("comment", "comments", site, None, after, command))

    def undo(self, entry: int | None = None) -> dict[str, Any] | None:
        """Take back the newest change that stands (or the entry with that id) and return it; None if there is none.

        Undo appends to the history. To undo an entry whose verb is `undo` is to redo.
        """
        with self._database.writing() as connection:
            row = entries.last_to_undo(connection) if entry is None else entries.entry_to_undo(connection, entry)
            command = self._command("undo" if entry is None else f"undo {entry}")
            return None if row is None else entries.reverse(connection, row, command)

    def redo(self) -> dict[str, Any] | None:
        """Bring back what the last undo took away, unless something new was done since; returns that undo, or None."""
        with self._database.writing() as connection:
            row = entries.last_to_redo(connection)
            return None if row is None else entries.reverse(connection, row, self._command("redo"))

    # ---- looking -------------------------------------------------------------------------------------------------

    def claim(self, id: str) -> dict[str, Any]:
        """The claim `id` (or the only one that begins so) with id, time added and tensor names."""
        key, value = keeping.find(self._database, ("claims",), id)
        return _claim(key, value)

    def claims(self) -> list[dict[str, Any]]:
        """All claims that stand, oldest first."""
        return [_claim(key, value) for key, value in keeping.rows(self._database, "claims")]

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Kept results, oldest first: id, kind, time added, tensor names, and `data` as it was given."""
        kept = [_record(key, value) for key, value in keeping.rows(self._database, "records")]
        return [record for record in kept if kind is None or record["kind"] == kind]

    def tensors(self, id: str) -> dict[str, np.ndarray]:
        """The arrays of a claim or record, read-only and memory-mapped: nothing is read until it is looked at."""
        _, value = keeping.find(self._database, ("claims", "records"), id)
        with explained(self.path):
            return shards.read_named(self._tensors, value["tensors"])

    def models(self) -> dict[str, dict[str, Any]]:
        """Facts about each network by its fingerprint."""
        return dict(keeping.rows(self._database, "models"))

    def names(self) -> dict[str, str]:
        """The name of each site that has one."""
        return dict(keeping.rows(self._database, "names"))

    def comments(self) -> dict[str, list[dict[str, Any]]]:
        """The comments (id, text, time) of each site, oldest first."""
        found: dict[str, list[dict[str, Any]]] = {}
        for _, value in keeping.rows(self._database, "comments"):
            found.setdefault(value["site"], []).append({key: value[key] for key in ("id", "text", "time")})
        return found

    def history(self) -> list[dict[str, Any]]:
        """Every entry, oldest first: id, time, verb, target, subject, before, after, command, undoes, undone_by."""
        rows = self._database.read("SELECT * FROM history ORDER BY id DESC")
        return [entries.described(row, by) for row, by in entries.undone_by(rows)][::-1]

    def show(self) -> dict[str, Any]:
        """Everything a person wants to see at a glance, JSON-able."""
        kinds: dict[str, int] = {}
        for record in self.records():
            kinds[record["kind"]] = kinds.get(record["kind"], 0) + 1
        claims = [{key: claim[key] for key in ("id", "statement", "verdict", "added")} for claim in self.claims()]
        past = self.history()
        (stored,) = self._database.read("SELECT count(*) AS files, coalesce(sum(size), 0) AS bytes FROM shards")
        keys = ("id", "time", "verb", "subject", "command", "undoes", "undone_by")
        return {
            "path": str(self.path),
            "format": SCHEMA_VERSION,
            "models": self.models(),
            "claims": claims,
            "records": kinds,
            "names": self.names(),
            "comments": self.comments(),
            "tensor_files": stored["files"],
            "tensor_bytes": stored["bytes"],
            "entries": len(past),
            "recent": [{key: entry[key] for key in keys} for entry in past[-10:]],
        }

    def check(self) -> list[str]:
        """What is wrong with the project, one sentence each; an empty list means sound. Reads every tensor file."""
        return integrity.check(self._database, self._tensors)

    # ---- how -----------------------------------------------------------------------------------------------------

    def _set(self, verb: str, target: str, key: str, after: str | None, command: str) -> None:
        """Make `target[key]` equal `after`; no entry if it already does."""
        with self._database.writing() as connection:
            before = entries.current(connection, target, key)
            if before == after:
                return
            if target == "names" and after is not None:
                entries.refuse_clash(connection, key, after)
            entries.append(connection, Change(verb, target, key, before, after, self._command(command)))

    def _command(self, arguments: str) -> str:
        """The command line that does the same."""
        verb, _, rest = arguments.partition(" ")
        return f"cutaway {verb} {shlex.quote(str(self.path))} {rest}".rstrip()


def _project_path(path: str | Path) -> Path:
    text = str(path)
    if not text.strip() or "\0" in text:
        raise ProjectError("The project's path is empty or holds a NUL character; give the name of a folder.")
    given = Path(path)
    if given.name in ("", ".."):  # the folder one stands in, perhaps the project itself
        given = given.resolve()
    if not given.name:
        raise ProjectError(f"{given} cannot be a project; give the name of a folder.")
    return given if given.suffix == SUFFIX else given.with_name(given.name + SUFFIX)


def _prepare_folder(path: Path, *, create: bool) -> None:
    """Make the folder, or refuse one that holds something else."""
    if path.is_dir():
        foreign = [entry.name for entry in path.iterdir() if not entry.name.startswith(".tmp")]
        if foreign and not (path / "project.db").exists() and set(foreign) != {"tensors"}:
            # Another process may have created the project between the two looks.
            if not (path / "project.db").exists():
                raise ProjectError(f"{path} exists but is not a Cutaway project (no project.db); choose another name.")
    elif path.exists():
        raise ProjectError(f"{path} is a file, not a Cutaway project folder; choose another name.")
    elif create:
        path.mkdir(parents=True, exist_ok=True)
        shards.sync_folder(path.parent)
    else:
        folder = path.parent if path.parent.is_dir() else Path()
        near = difflib.get_close_matches(path.name, [entry.name for entry in folder.glob(f"*{SUFFIX}")], n=3)
        raise ProjectError(f"There is no project {path}" + (f"; did you mean {', '.join(near)}?" if near else "."))


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ProjectError(f"The {what} must be a dict, not {type(value).__name__}.")
    return dict(value)


def _claim(key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {**value["body"], "id": key, "added": value["added"], "tensor_names": sorted(value["tensors"])}


def _record(key: str, value: dict[str, Any]) -> dict[str, Any]:
    described = {"id": key, "kind": value["kind"], "added": value["added"], "tensor_names": sorted(value["tensors"])}
    return {**described, "data": value["body"]}
