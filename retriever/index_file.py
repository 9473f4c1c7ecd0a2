"""One FAISS index as a file: whole or not there, and never trusted unread."""

import hashlib
import os
import struct
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from kvblend.retriever.records import CollectionState

__all__ = ["load_index", "save_index"]

MAGIC = b"KVBIDX01"
HEADER = struct.Struct("<8sq16s32s")  # magic, the collection's key and version, SHA-256 of what follows


def save_index(path: Path, index_bytes: bytes, state: CollectionState) -> None:
    """Put a serialized index in the file's place, synced, by a rename. One writer at a time."""
    header = HEADER.pack(MAGIC, state.key, state.version, hashlib.sha256(index_bytes).digest())
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(header)
        file.write(index_bytes)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_index(path: Path, *, collection_key: int) -> tuple[Any, bytes] | None:
    """Read an index and the collection's version that it was saved at; None where there is no sound one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < HEADER.size:
        return None
    magic, key, version, digest = HEADER.unpack_from(data)
    payload = memoryview(data)[HEADER.size :]
    if magic != MAGIC or key != collection_key or hashlib.sha256(payload).digest() != digest:
        return None
    return faiss.deserialize_index(np.frombuffer(payload, dtype=np.uint8)), version
