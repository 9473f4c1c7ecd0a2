"""Accepted documents and their jobs on disk, so that an ingest outlives the service's process."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvblend.api.ingest.uploads import Upload
from kvblend.core.rest import IngestJob
from kvblend.retriever import Database

__all__ = ["IngestJournal", "Unfinished"]

MAX_ENDED_JOBS = 1000
SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    collection TEXT NOT NULL,
    number INTEGER NOT NULL,
    state TEXT NOT NULL,
    ended INTEGER NOT NULL DEFAULT 0,
    num_cuts INTEGER NOT NULL DEFAULT 0,
    is_rebuild INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_by_number ON jobs (ended, number);
CREATE TABLE uploads (
    job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
    position INTEGER NOT NULL,
    number INTEGER NOT NULL,
    collection TEXT NOT NULL,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    media_type TEXT,
    metadata TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (job, position)
);
CREATE INDEX uploads_by_document ON uploads (collection, id)
"""
MIGRATIONS = {1: "ALTER TABLE jobs ADD COLUMN is_rebuild INTEGER NOT NULL DEFAULT 0"}


@dataclass(frozen=True)
class Unfinished:
    """A job that a process left behind, the documents that it still has to take, and how often it was cut short.

    `is_rebuild`: its documents are those of its collection, and no uploads.
    """

    state: IngestJob
    number: int
    uploads: list[Upload]
    num_cuts: int
    is_rebuild: bool = False


class IngestJournal:
    """An SQLite file, synced before a method returns. Call its methods in a thread.

    A document's bytes stay until its job has ended; a newer upload of it, or its deletion, takes them away before.
    Jobs are numbered in the order in which they were accepted.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path, schema=SCHEMA, schema_version=2, migrations=MIGRATIONS)

    def close(self) -> None:
        self._database.close()

    def accept(
        self, state: IngestJob, number: int, uploads: Sequence[Upload] = (), *, is_rebuild: bool = False
    ) -> None:
        """Note a job and its documents, in place of older uploads of these."""
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO jobs (id, collection, number, state, is_rebuild) VALUES (?, ?, ?, ?, ?)",
                (state.id, state.collection, number, state.model_dump_json(), is_rebuild),
            )
            connection.executemany(
                "DELETE FROM uploads WHERE collection = ? AND id = ? AND number < ?",
                ((state.collection, upload.id, number) for upload in uploads),
            )
            connection.executemany(
                "INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (state.id, position, number, state.collection, upload.id, upload.name, upload.media_type,
                     json.dumps(upload.metadata, ensure_ascii=False), upload.data)
                    for position, upload in enumerate(uploads)
                ),
            )  # fmt: skip

    def end(self, state: IngestJob) -> None:
        """Note how a job has ended, and forget its documents' bytes; of ended jobs the newest thousand stay."""
        with self._database.write() as connection:
            connection.execute("UPDATE jobs SET state = ?, ended = 1 WHERE id = ?", (state.model_dump_json(), state.id))
            connection.execute("DELETE FROM uploads WHERE job = ?", (state.id,))
            connection.execute(
                """DELETE FROM jobs WHERE ended AND number <=
                (SELECT number FROM jobs WHERE ended ORDER BY number DESC LIMIT 1 OFFSET ?)""",
                (MAX_ENDED_JOBS,),
            )
        self._database.forget_deleted()

    def withdraw(self, collection: str, document_id: str, *, before: int) -> None:
        """Forget what was uploaded of a document by jobs numbered below `before`."""
        with self._database.write() as connection:
            connection.execute(
                "DELETE FROM uploads WHERE collection = ? AND id = ? AND number < ?", (collection, document_id, before)
            )
        self._database.forget_deleted()

    def forget_collection(self, collection: str, *, before: int) -> None:
        """Forget a collection's jobs numbered below `before`, with their documents."""
        with self._database.write() as connection:
            connection.execute("DELETE FROM jobs WHERE collection = ? AND number < ?", (collection, before))
        self._database.forget_deleted()

    def ended(self) -> list[IngestJob]:
        """The jobs that have ended, in order."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT state FROM jobs WHERE ended ORDER BY number").fetchall()
        return [IngestJob.model_validate_json(row["state"]) for row in rows]

    def take_up(self) -> list[Unfinished]:
        """The jobs that have not ended, in order; each is counted as cut short once more until `rest`."""
        with self._database.write() as connection:
            connection.execute("UPDATE jobs SET num_cuts = num_cuts + 1 WHERE NOT ended")
            rows = connection.execute("SELECT * FROM jobs WHERE NOT ended ORDER BY number").fetchall()
            uploads = {
                row["id"]: list(
                    _uploads(
                        connection.execute(
                            "SELECT * FROM uploads WHERE job = ? ORDER BY position", (row["id"],)
                        ).fetchall()
                    )
                )
                for row in rows
            }
        return [
            Unfinished(
                IngestJob.model_validate_json(row["state"]),
                row["number"],
                uploads[row["id"]],
                row["num_cuts"],
                bool(row["is_rebuild"]),
            )
            for row in rows
        ]

    def rest(self) -> None:
        """The process ends as it should: what is under way was not cut short by its own doing."""
        with self._database.write() as connection:
            connection.execute("UPDATE jobs SET num_cuts = 0 WHERE NOT ended")


def _uploads(rows: Sequence[sqlite3.Row]) -> Iterator[Upload]:
    for row in rows:
        yield Upload(
            id=row["id"],
            name=row["name"],
            media_type=row["media_type"],
            data=row["data"],
            metadata=json.loads(row["metadata"]),
        )
