"""The SQLite file of a project: creation, versions, transactions, and what its errors mean in plain words.

Write-ahead logging lets any number of processes read while one writes; writers take turns (BEGIN IMMEDIATE and a
busy timeout). `synchronous=FULL` makes a commit wait for the disk, so what was acknowledged survives a crash.
Write-ahead logging needs shared memory: a project belongs on a local disk, not on a network file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sqlite3
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from cutaway.errors import CutawayError, ProjectError, ResourceError
from cutaway.project.shards import sync_folder

FILE_NAME = "project.db"
APPLICATION_ID = 0x43555457  # "CUTW", at byte 68 of the file: tells a project from other SQLite files
SCHEMA_VERSION = 1  # at byte 60 of the file (PRAGMA user_version)
BUSY_SECONDS = 60.0

# `history` is only ever appended to. The other tables follow from it and are written in the same transaction.
_SCHEMA = """
CREATE TABLE history (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, verb TEXT NOT NULL, target TEXT NOT NULL,
    subject TEXT NOT NULL, before TEXT, after TEXT, command TEXT NOT NULL, undoes INTEGER REFERENCES history(id));
CREATE INDEX history_undoes ON history(undoes) WHERE undoes IS NOT NULL;
CREATE TABLE models   (key TEXT PRIMARY KEY, value TEXT NOT NULL, entry INTEGER NOT NULL);
CREATE TABLE claims   (key TEXT PRIMARY KEY, value TEXT NOT NULL, entry INTEGER NOT NULL);
CREATE TABLE records  (key TEXT PRIMARY KEY, value TEXT NOT NULL, entry INTEGER NOT NULL);
CREATE TABLE names    (key TEXT PRIMARY KEY, value TEXT NOT NULL UNIQUE, entry INTEGER NOT NULL);
CREATE TABLE comments (key TEXT PRIMARY KEY, value TEXT NOT NULL, entry INTEGER NOT NULL);
CREATE TABLE shards   (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, entry INTEGER NOT NULL);
"""
TABLES = ("models", "claims", "records", "names", "comments")

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Closing any descriptor of a file drops the process's POSIX locks on it (https://sqlite.org/howtocorrupt.html, 2.2),
# so the header is looked at directly only while this process has no connection to that file.
_connected: Counter[tuple[int, int]] = Counter()
_connected_lock = threading.Lock()


class Database:
    """One connection to a project's SQLite file. Threads may share it; they take turns."""

    def __init__(self, folder: Path, *, create: bool, readonly: bool) -> None:
        """Open, or with `create` make, the database in `folder`. Raises ProjectError or ResourceError."""
        self.path = folder / FILE_NAME
        self.readonly = readonly
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        with _connected_lock:
            if not self.path.exists():
                if readonly or not create:
                    raise ProjectError(f"{folder} is not a Cutaway project: it has no {FILE_NAME}.")
                with explained(folder):
                    _create(self.path)
            with explained(folder):
                status = self.path.stat()
                self._identity = (status.st_dev, status.st_ino)
                if not _connected[self._identity]:
                    _look_at_header(self.path)
                connection = _connect(self.path, readonly)
            try:
                with explained(folder):
                    _look_at_schema(connection, self.path)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            _connected[self._identity] += 1

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._lock, _connected_lock:
            if self._connection is not None:
                connection, self._connection = self._connection, None
                _connected[self._identity] -= 1
                connection.close()

    def read(self, sql: str, parameters: tuple[object, ...] = ()) -> list[sqlite3.Row]:
        """All rows of one SELECT or PRAGMA, from one consistent moment."""
        with self._lock, explained(self.path.parent):
            return self._open().execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Several reads that see the same moment."""
        with self._turn("BEGIN") as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: everything inside is stored and flushed when the block ends, or nothing is."""
        if self.readonly:
            raise ProjectError(f"{self.path.parent} was opened for reading; open it with readonly=False to change it.")
        with self._turn("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextlib.contextmanager
    def _turn(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, explained(self.path.parent):
            connection = self._open()
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # SQLite may have rolled back by itself (disk full); a second ROLLBACK would hide the reason.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ProjectError(f"{self.path.parent} is closed; open the project again.")
        return self._connection


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn errors of SQLite and the system inside the block into one sentence about the project `folder`."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain_sqlite(error, folder) from error
    except OSError as error:
        raise _explain_system(error, folder) from error
    except UnicodeDecodeError as error:
        # Python decodes texts of a damaged file before SQLite's own error can be seen.
        raise ProjectError(
            f"{folder / FILE_NAME} is damaged (text that is no UTF-8); restore it from a copy."
        ) from error


def _explain_sqlite(error: sqlite3.Error, folder: Path) -> CutawayError:
    code = getattr(error, "sqlite_errorcode", 0) or 0
    primary = code & 0xFF
    if primary == sqlite3.SQLITE_FULL or code in (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC):
        return ResourceError(
            f"The disk is full or failing ({error}); nothing was added to {folder}. Free space, repeat."
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ProjectError(
            f"Another process has kept {folder} locked for {BUSY_SECONDS:.0f} s; wait for it, then repeat."
        )
    if primary == sqlite3.SQLITE_READONLY:
        return ProjectError(
            f"{folder} cannot be written; open it with readonly=True, or copy it to where you may write."
        )
    if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return ProjectError(f"{folder / FILE_NAME} is damaged or no SQLite file ({error}); restore it from a copy.")
    if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return ProjectError(f"{folder} cannot be opened ({error}); check the folder and its permissions.")
    return ProjectError(f"SQLite could not work on {folder} ({error}); `cutaway check` tells what is wrong with it.")


def _explain_system(error: OSError, folder: Path) -> CutawayError:
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return ResourceError(f"The disk is full ({reason}); nothing was added to {folder}. Free some space and repeat.")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ProjectError(f"{folder} cannot be written or read ({reason}); check permissions, or use readonly=True.")
    return ProjectError(f"{folder} could not be used ({reason}).")


def _create(path: Path) -> None:
    """Make the database under a temporary name and link it into place: it appears complete or not at all."""
    temporary = path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(8)}"
    try:
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            connection.executescript(
                f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; BEGIN; {_SCHEMA}"
                f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
            )
        finally:
            connection.close()  # the last connection folds the log into the file
        try:
            os.link(temporary, path)  # unlike a rename, never replaces what another process made meanwhile
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            os.rename(temporary, path)  # a file system without hard links
        sync_folder(path.parent)
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{temporary}{suffix}").unlink(missing_ok=True)


def _look_at_header(path: Path) -> None:
    """Refuse what is no project, or one from a newer version, before SQLite gets to touch the folder."""
    if not path.is_file():
        raise ProjectError(f"{path} is not a file, so {path.parent} is not a Cutaway project.")
    with path.open("rb") as file:
        head = file.read(100)
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        raise ProjectError(f"{path.parent} is not a Cutaway project: its {FILE_NAME} is no SQLite file.")
    version, application = struct.unpack(">i4xi", head[60:72])
    _check_version(version, application, path)


def _look_at_schema(connection: sqlite3.Connection, path: Path) -> None:
    """The same check through SQLite (which sees the log), and that nothing but our own tables is in there."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    _check_version(version, application, path)
    found = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    foreign = connection.execute("SELECT name FROM sqlite_schema WHERE type IN ('trigger', 'view')").fetchall()
    missing = {*TABLES, "history", "shards"} - found
    if missing or foreign:
        wrong = (
            f"table {min(missing)} is missing" if missing else f"it holds a foreign trigger or view {foreign[0][0]!r}"
        )
        raise ProjectError(f"{path} is not a sound project file: {wrong}; restore it from a copy.")


def _check_version(version: int, application: int, path: Path) -> None:
    if application != APPLICATION_ID:
        raise ProjectError(f"{path.parent} is not a Cutaway project: its {FILE_NAME} belongs to another program.")
    if version > SCHEMA_VERSION:
        raise ProjectError(
            f"{path.parent} was written by a newer Cutaway (format {version}, this one knows {SCHEMA_VERSION}); "
            "update Cutaway to open it. It was not changed."
        )
    if version < 1:
        raise ProjectError(f"{path.parent} has the impossible format number {version}; restore it from a copy.")


def _connect(path: Path, readonly: bool) -> sqlite3.Connection:
    if not readonly:
        if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
            raise OSError(errno.EACCES, "no permission to write")
        return _configure(_attach(path, "rw"), readonly=False)
    try:
        return _configure(_attach(path, "ro"), readonly=True)
    except sqlite3.OperationalError:
        # On a read-only disk SQLite cannot make its shared-memory file. Nobody can be writing there, so the file may
        # be read as it is, unless a log is waiting to be folded in.
        log = Path(f"{path}-wal")
        if os.access(path.parent, os.W_OK) or (log.exists() and log.stat().st_size):
            raise
        return _configure(_attach(path, "ro", "&immutable=1"), readonly=True)


def _attach(path: Path, mode: str, more: str = "") -> sqlite3.Connection:
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}{more}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _configure(connection: sqlite3.Connection, readonly: bool) -> sqlite3.Connection:
    connection.row_factory = sqlite3.Row
    try:
        # The file may come from somebody else: no functions from its schema, and no trust in its cells.
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
        if readonly:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        else:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
    except BaseException:
        connection.close()
        raise
    return connection
