"""The catalog's tables."""

__all__ = ["SCHEMA", "SCHEMA_VERSION"]

SCHEMA_VERSION = 1

# Keys are never used twice (AUTOINCREMENT): an index that names a deleted row cannot name another passage.
SCHEMA = """
CREATE TABLE collections (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    passage_tokens INTEGER NOT NULL,
    settings TEXT NOT NULL,
    created_at REAL NOT NULL,
    version BLOB NOT NULL
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
    PRIMARY KEY (document, position)
) WITHOUT ROWID;
CREATE INDEX documents_by_passage ON document_passages (passage);
CREATE TABLE stored_values (
    collection INTEGER REFERENCES collections ON DELETE CASCADE,
    name TEXT NOT NULL,
    value TEXT NOT NULL
);
CREATE UNIQUE INDEX stored_values_by_name ON stored_values (ifnull(collection, 0), name)
"""
