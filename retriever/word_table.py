"""The words of a collection's passages: an FTS5 table of its own, so that no other collection weighs in its ranks.

Its content are the passages themselves. `collections.words` says how far it is: see `WordsState`.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Sequence
from enum import IntEnum
from sqlite3 import Connection

__all__ = [
    "WordsState",
    "add_words",
    "create_words",
    "drop_words",
    "drop_words_of",
    "find_words",
    "index_words",
    "merge_words",
    "words_rows",
]

WORD = re.compile(r"\w+")
MAX_WORDS = 64
"""Of a query, the first: what is longer is no question but a text, which vectors are for."""
MAX_COMMON = 20_000
"""A word in so many passages tells little and costs most of a search: it counts only where a query has no rarer one."""
FORGETS_AT_ONCE = sqlite3.sqlite_version_info >= (3, 42)
"""Whether this SQLite takes deleted words out of an index's pages. An older one marks them, until a merge."""
MERGED_PAGES = 500


class WordsState(IntEnum):
    """Of a collection's word index: not whole yet, whole, or whole with words of deleted passages left to merge out."""

    MISSING = 0
    WHOLE = 1
    MARKED = 2


def create_words(connection: Connection, key: int) -> None:
    """Make an empty index; one that is there stays."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (_table(key),)).fetchone():
        return
    connection.execute(
        f"""CREATE VIRTUAL TABLE {_table(key)} USING fts5(
        text, content='passages', content_rowid='row', tokenize='porter unicode61')"""
    )
    if FORGETS_AT_ONCE:
        connection.execute(f"INSERT INTO {_table(key)}({_table(key)}, rank) VALUES ('secure-delete', 1)")


def drop_words(connection: Connection, key: int) -> None:
    """Delete an index."""
    connection.execute(f"DROP TABLE IF EXISTS {_table(key)}")


def add_words(connection: Connection, key: int, rows: Iterable[int]) -> None:
    """Index passages that have just been put."""
    connection.execute(
        f"""INSERT INTO {_table(key)}(rowid, text)
        SELECT row, text FROM passages WHERE row IN (SELECT value FROM json_each(?)) ORDER BY row""",
        (json.dumps(list(rows)),),
    )


def drop_words_of(connection: Connection, key: int, passages: Sequence[tuple[int, str]]) -> None:
    """Take deleted passages, each its row and text, out of an index."""
    connection.executemany(f"INSERT INTO {_table(key)}({_table(key)}, rowid, text) VALUES ('delete', ?, ?)", passages)
    if passages and not FORGETS_AT_ONCE:
        connection.execute("UPDATE collections SET words = ? WHERE key = ?", (WordsState.MARKED, key))


def index_words(connection: Connection, key: int, *, batch: int) -> bool:
    """Index the next passages of a collection from before there were word indexes; whether some may be left."""
    create_words(connection, key)
    last = connection.execute(f"SELECT ifnull(max(id), 0) FROM {_table(key)}_docsize").fetchone()[0]
    rows = connection.execute(
        "SELECT row FROM passages WHERE collection = ? AND row > ? ORDER BY row LIMIT ?", (key, last, batch)
    ).fetchall()
    add_words(connection, key, [row["row"] for row in rows])
    if len(rows) == batch:
        return True
    connection.execute("UPDATE collections SET words = ? WHERE key = ?", (WordsState.WHOLE, key))
    return False


def merge_words(connection: Connection, key: int, *, begin: bool) -> bool:
    """Do a step of merging all of an index, without what was deleted, into one; whether there may be more to do."""
    before = connection.total_changes
    pages = -MERGED_PAGES if begin else MERGED_PAGES
    connection.execute(f"INSERT INTO {_table(key)}({_table(key)}, rank) VALUES ('merge', ?)", (pages,))
    if connection.total_changes - before >= 2:  # SQLite's own sign of work done
        return True
    connection.execute("UPDATE collections SET words = ? WHERE key = ?", (WordsState.WHOLE, key))
    return False


def find_words(
    connection: Connection, key: int, query: str, *, top_k: int, rows: Sequence[int] | None = None
) -> list[tuple[int, float]]:
    """Rows of the passages that hold words of a query, and their BM25, best first; of `rows` alone, if given.

    Nothing in a query is syntax: its words are looked up, whatever else it holds.
    """
    words = list(dict.fromkeys(WORD.findall(query.lower())))[:MAX_WORDS]
    if not words:
        return []
    words = [word for word in words if not _is_common(connection, key, word)] or words
    # the + keeps the planner from asking the index once for each row
    among = "" if rows is None else "AND +rowid IN (SELECT value FROM json_each(?))"
    chosen = () if rows is None else (json.dumps(list(rows)),)
    found = connection.execute(
        f"""SELECT rowid, -bm25({_table(key)}) AS score FROM {_table(key)}
        WHERE {_table(key)} MATCH ? {among} ORDER BY score DESC, rowid LIMIT ?""",
        (" OR ".join(f'"{word}"' for word in words), *chosen, top_k),
    ).fetchall()
    return [(row["rowid"], row["score"]) for row in found]


def words_rows(connection: Connection, key: int) -> list[int]:
    """Rows of the passages that are indexed; for checks."""
    connection.execute(f"INSERT INTO {_table(key)}({_table(key)}) VALUES ('integrity-check')")
    return [row["id"] for row in connection.execute(f"SELECT id FROM {_table(key)}_docsize ORDER BY id").fetchall()]


def _is_common(connection: Connection, key: int, word: str) -> bool:
    found = connection.execute(
        f"SELECT 1 FROM {_table(key)} WHERE {_table(key)} MATCH ? LIMIT 1 OFFSET ?", (f'"{word}"', MAX_COMMON - 1)
    ).fetchone()
    return found is not None


def _table(key: int) -> str:
    return f"words_{key}"
