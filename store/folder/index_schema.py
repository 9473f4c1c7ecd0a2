"""The tables of a folder tier's index."""

__all__ = ["SCHEMA", "SCHEMA_VERSION"]

SCHEMA_VERSION = 1

COUNTED = ("kind", "queue", "owner", "pinned")
"""What files are counted by."""


def _count(sign: str, row: str) -> str:
    """Add or take away one file of a trigger's `row`."""
    names = ", ".join(COUNTED)
    values = ", ".join(f"{row}.{name}" for name in COUNTED)
    return f"""
        INSERT INTO totals ({names}, num_files, num_bytes) VALUES ({values}, {sign}1, {sign}{row}.num_bytes)
        ON CONFLICT DO UPDATE SET
            num_files = num_files + excluded.num_files, num_bytes = num_bytes + excluded.num_bytes;
    """


SCHEMA = f"""
    CREATE TABLE files (
        name TEXT PRIMARY KEY,
        kind TEXT NOT NULL CHECK (kind IN ('whole', 'leaving', 'writing', 'quarantined')),
        num_bytes INTEGER NOT NULL,
        cost REAL NOT NULL,
        used_ns INTEGER NOT NULL,
        num_uses INTEGER NOT NULL DEFAULT 0,
        pinned INTEGER NOT NULL DEFAULT 0,
        owner TEXT NOT NULL DEFAULT '',
        queue INTEGER NOT NULL DEFAULT 0,
        rank REAL NOT NULL DEFAULT 0,
        placed_at INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE INDEX by_rank ON files (queue, rank, placed_at) WHERE kind = 'whole' AND pinned = 0;
    CREATE INDEX by_owner ON files (owner, queue, rank, placed_at) WHERE kind = 'whole' AND pinned = 0 AND owner != '';
    CREATE INDEX unusual ON files (kind) WHERE kind != 'whole';
    CREATE TABLE totals (
        kind TEXT, queue INTEGER, owner TEXT, pinned INTEGER,
        num_files INTEGER NOT NULL, num_bytes INTEGER NOT NULL,
        PRIMARY KEY (kind, queue, owner, pinned)
    ) WITHOUT ROWID;
    CREATE TABLE remembered (name TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX by_age ON remembered (until);
    CREATE TABLE state (name TEXT PRIMARY KEY, value NUMERIC NOT NULL) WITHOUT ROWID;
    INSERT INTO state VALUES ('clock', 0), ('floor', 0), ('num_evicted', 0), ('clean', 0);
    CREATE TRIGGER came AFTER INSERT ON files BEGIN {_count("+", "new")} END;
    CREATE TRIGGER went AFTER DELETE ON files BEGIN {_count("-", "old")} END;
    CREATE TRIGGER changed AFTER UPDATE OF kind, queue, owner, pinned, num_bytes ON files
    WHEN (old.kind, old.queue, old.owner, old.pinned, old.num_bytes)
        != (new.kind, new.queue, new.owner, new.pinned, new.num_bytes)
    BEGIN {_count("-", "old")} {_count("+", "new")} END;
    PRAGMA user_version = {SCHEMA_VERSION};
"""
