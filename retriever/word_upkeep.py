"""What the word indexes need beside the writes to them, in transactions of their own: other writers go in between."""

import logging

from kvblend.retriever.database import Database
from kvblend.retriever.word_table import FORGETS_AT_ONCE, WordsState, index_words, merge_words

__all__ = ["forget_words", "index_missing_words"]

WORDS_BATCH = 4096

logger = logging.getLogger(__name__)


def index_missing_words(database: Database) -> None:
    """Index the words of collections from before there were word indexes; one that is cut off goes on at the next
    start."""
    for name, key in _in_state(database, WordsState.MISSING):
        logger.info("the words of collection %r are indexed, once", name)
        more = True
        while more:
            with database.write() as connection:
                more = index_words(connection, key, batch=WORDS_BATCH)


def forget_words(database: Database) -> None:
    """Merge deleted words out of the indexes where SQLite has only marked them."""
    if FORGETS_AT_ONCE:
        return
    for _, key in _in_state(database, WordsState.MARKED):
        begin = more = True
        while more:
            with database.write() as connection:
                more = merge_words(connection, key, begin=begin)
            begin = False


def _in_state(database: Database, state: WordsState) -> list[tuple[str, int]]:
    with database.read() as connection:
        rows = connection.execute("SELECT name, key FROM collections WHERE words = ?", (state,)).fetchall()
    return [(row["name"], row["key"]) for row in rows]
