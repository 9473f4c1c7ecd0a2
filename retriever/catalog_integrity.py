"""What holds of the catalog's file whatever was done to it."""

from sqlite3 import Connection

from kvblend.retriever.word_table import WordsState, words_rows

__all__ = ["check_integrity"]


def check_integrity(connection: Connection) -> None:
    """Assert that the file is sound, references and counts hold, and no passage is without a document or its words."""
    assert [row[0] for row in connection.execute("PRAGMA integrity_check")] == ["ok"]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    orphans = "SELECT 1 FROM passages WHERE row NOT IN (SELECT passage FROM document_passages)"
    assert connection.execute(orphans).fetchall() == []
    counts = """SELECT 1 FROM documents d WHERE num_passages !=
        (SELECT count(*) FROM document_passages WHERE document = d.row)"""
    assert connection.execute(counts).fetchall() == []
    kept = """SELECT 1 FROM collections WHERE
        num_documents != (SELECT count(*) FROM documents WHERE collection = key) OR
        num_passages != (SELECT count(*) FROM passages WHERE collection = key)"""
    assert connection.execute(kept).fetchall() == []
    for row in connection.execute("SELECT key, words FROM collections").fetchall():
        held = connection.execute("SELECT row FROM passages WHERE collection = ? ORDER BY row", (row["key"],))
        assert words_rows(connection, row["key"]) == [each["row"] for each in held.fetchall()]
        assert row["words"] == WordsState.WHOLE
