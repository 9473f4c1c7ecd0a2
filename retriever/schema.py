"""The catalog's tables."""

__all__ = ["MIGRATIONS", "SCHEMA", "SCHEMA_VERSION"]

SCHEMA_VERSION = 8

SOURCE_COLUMNS = """(
    document INTEGER PRIMARY KEY REFERENCES documents ON DELETE CASCADE,
    data BLOB NOT NULL
)"""

MIGRATIONS = {
    1: "ALTER TABLE document_passages ADD COLUMN context TEXT NOT NULL DEFAULT ''",
    2: "CREATE INDEX places_by_context ON document_passages (passage, context)",
    3: "ALTER TABLE collections ADD COLUMN num_documents INTEGER NOT NULL DEFAULT 0",
    4: "ALTER TABLE collections ADD COLUMN num_passages INTEGER NOT NULL DEFAULT 0",
    5: """UPDATE collections SET
        num_documents = (SELECT count(*) FROM documents WHERE collection = key),
        num_passages = (SELECT count(*) FROM passages WHERE collection = key)""",
    6: "ALTER TABLE collections ADD COLUMN words INTEGER NOT NULL DEFAULT 0",
    7: f"CREATE TABLE document_sources {SOURCE_COLUMNS}",
}
"""By version, what makes the next one of it."""

# Keys are never used twice (AUTOINCREMENT): an index that names a deleted row cannot name another passage.
SCHEMA = f"""
CREATE TABLE collections (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    passage_tokens INTEGER NOT NULL,
    settings TEXT NOT NULL,
    created_at REAL NOT NULL,
    version BLOB NOT NULL,
    num_documents INTEGER NOT NULL DEFAULT 0,
    num_passages INTEGER NOT NULL DEFAULT 0,
    words INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE documents (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    collection INTEGER NOT NULL REFERENCES collections ON DELETE CASCADE,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    media_type TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    metadata TEXT NOT NULL,
    num_passages INTEGER NOT NULL,
    num_tokens INTEGER NOT NULL,
    created_at REAL NOT NULL,
    UNIQUE (collection, id)
);
CREATE TABLE passages (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    collection INTEGER NOT NULL REFERENCES collections ON DELETE CASCADE,
    passage_id TEXT NOT NULL,
    text TEXT NOT NULL,
    token_ids BLOB NOT NULL,
    vector BLOB NOT NULL,
    UNIQUE (collection, passage_id)
);
CREATE INDEX passages_by_id ON passages (passage_id);
CREATE TABLE document_passages (
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    position INTEGER NOT NULL,
    passage INTEGER NOT NULL REFERENCES passages ON DELETE CASCADE,
    context TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (document, position)
) WITHOUT ROWID;
CREATE TABLE document_sources {SOURCE_COLUMNS};
CREATE INDEX documents_by_passage ON document_passages (passage);
CREATE INDEX places_by_context ON document_passages (passage, context);
CREATE TABLE stored_values (
    collection INTEGER REFERENCES collections ON DELETE CASCADE,
    name TEXT NOT NULL,
    value TEXT NOT NULL
);
CREATE UNIQUE INDEX stored_values_by_name ON stored_values (ifnull(collection, 0), name)
"""
