"""Which files an index is made of, in order; the last part is the one that grows."""

import json
from pathlib import Path

import xxhash

from kvblend.core.durable_file import replace_file, sync_folder

__all__ = ["NAME", "load_manifest", "save_manifest"]

NAME = "parts.json"


def save_manifest(folder: Path, collection_key: int, names: list[str]) -> None:
    """Put the list in its file's place, synced, by a rename."""
    body = json.dumps({"collection": collection_key, "parts": names})
    replace_file(folder / NAME, f"{xxhash.xxh3_64_hexdigest(body.encode())}\n{body}")
    sync_folder(folder)


def load_manifest(folder: Path, collection_key: int) -> list[str]:
    """The parts' file names; none where the list is missing or torn, or another collection's."""
    try:
        digest, _, body = (folder / NAME).read_bytes().partition(b"\n")
    except FileNotFoundError:
        return []
    if digest.decode(errors="replace") != xxhash.xxh3_64_hexdigest(body):
        return []
    loaded = json.loads(body)
    return list(loaded["parts"]) if loaded["collection"] == collection_key else []
