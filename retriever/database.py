"""One SQLite file behind many threads: readers side by side, one writer at a time."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

__all__ = ["Database"]

BUSY_TIMEOUT_S = 30.0
CHECKPOINT_TIMEOUT_MS = 50
MAX_IDLE_READERS = 8


class Database:
    """Connections to one SQLite file in WAL mode, safe to share between threads.

    What a reader sees is one moment's state, whatever is being written. Deleted rows are overwritten.
    """

    def __init__(
        self, path: Path, *, schema: str, schema_version: int, migrations: Mapping[int, str] | None = None
    ) -> None:
        """Open or create the file; `migrations` has, by version, the statement that makes the next one of it.

        Raises:
            RuntimeError: the file was written with a schema version that nothing leads from.
        """
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = Lock()
        self._write_lock = Lock()
        self._writer = self._connect()
        self._writer.execute("PRAGMA journal_mode=WAL")
        with self.write() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in schema.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={schema_version}")
            while version and version in (migrations or {}):
                connection.execute((migrations or {})[version])
                version += 1
                connection.execute(f"PRAGMA user_version={version}")
            if version and version != schema_version:
                raise RuntimeError(f"{path} has schema version {version}; this is kvblend's version {schema_version}")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Borrow a connection within one read transaction."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect()
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.execute("ROLLBACK")
            with self._lock:
                keep = len(self._idle) < MAX_IDLE_READERS
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Borrow the writer within one transaction: committed and synced at the end, or undone by an exception."""
        with self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")

    def forget_deleted(self) -> None:
        """Empty the write-ahead log, so that deleted rows leave the disk; left to the next time if readers need it."""
        with self._write_lock:
            self._writer.execute(f"PRAGMA busy_timeout={CHECKPOINT_TIMEOUT_MS}")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._writer.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")

    def close(self) -> None:
        """Close every connection that is not borrowed."""
        with self._write_lock, self._lock:
            for connection in [*self._idle, self._writer]:
                connection.close()
            self._idle.clear()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        for pragma in ("foreign_keys=ON", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection
