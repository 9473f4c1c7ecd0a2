"""The SQLite database of a folder tier's index: opened, made anew where it is damaged, and written to alone."""

import errno
import logging
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from kvblend.store.folder.index_schema import SCHEMA, SCHEMA_VERSION

__all__ = ["INDEX_NAME", "IndexDatabase"]

log = logging.getLogger(__name__)

INDEX_NAME = ".index.sqlite3"
BUSY_S = 10.0


class IndexDatabase(ABC):
    """One connection, which threads share in turns. A database that is damaged, of another schema, or removed with its
    folder, is made anew. Raises OSError where it cannot be read or written.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / INDEX_NAME
        self._lock = threading.RLock()
        self._connect()

    def _connect(self) -> None:
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise _os_error(error, self._path) from error
            log.warning("the index %s is made anew: %s", self._path, error)
            for suffix in ("", "-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            try:
                self._open()
            except sqlite3.Error as again:
                raise _os_error(again, self._path) from again

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o770)
        self._connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = OFF")  # what a power cut takes, a scan brings back
            self._inode = self._path.stat().st_ino
            self._connection.execute("BEGIN IMMEDIATE")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA_VERSION):
                raise sqlite3.DatabaseError(f"it is of schema version {version}")
            if version == 0:
                for statement in _statements(SCHEMA):
                    self._connection.execute(statement)
            self._opened(is_new=version == 0)
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[Self]:
        """Read and write alone. What was written is undone where the block raises."""
        with self._lock:
            if not self._is_current():
                self._connection.close()
                self._connect()
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise _os_error(error, self._path) from error
            try:
                yield self
                self._connection.execute("COMMIT")
            except BaseException as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise _os_error(error, self._path) from error
                raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @abstractmethod
    def _opened(self, *, is_new: bool) -> None:
        """What is to be done in the first transaction on a database."""

    def _is_current(self) -> bool:
        """Whether the database still is the one in the folder: someone may have removed the folder."""
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _state(self, name: str) -> Any:
        (value,) = self._connection.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return value

    def _set_state(self, name: str, value: float | str) -> None:
        self._connection.execute("UPDATE state SET value = ? WHERE name = ?", (value, name))


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _os_error(error: sqlite3.Error, path: Path) -> OSError:
    full = "full" in str(error) or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return OSError(errno.ENOSPC if full else errno.EIO, f"the index cannot be used: {error}", str(path))
