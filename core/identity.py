"""Content hashes that name token sequences."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence

__all__ = ["EMPTY_CONTEXT", "prefix_hashes", "token_hash"]


def token_hash(token_ids: Sequence[int], *, salt: str | None = None) -> str:
    """Hash token ids, each as 8 little-endian bytes, with SHA-256; returns 64 hex digits.

    Of a passage's tokens it is the passage id; of the tokens in front of a passage when its KV was
    computed it is the encode context. `salt`, in hex digits, sets apart the encode contexts of those who know it.
    """
    return hashlib.sha256(bytes.fromhex(salt or "") + _to_bytes(token_ids)).hexdigest()


def prefix_hashes(parts: Sequence[Sequence[int]], *, salt: str | None = None) -> Iterator[str]:
    """Of each part, `token_hash` of all parts in front of it together; every token is hashed once."""
    digest = hashlib.sha256(bytes.fromhex(salt or ""))
    for part in parts:
        yield digest.hexdigest()
        digest.update(_to_bytes(part))


def _to_bytes(token_ids: Sequence[int]) -> bytes:
    ids = array("q", token_ids)
    if ids.itemsize != 8 or array("H", [1]).tobytes() != b"\x01\x00":  # pragma: no cover
        raise RuntimeError("kvblend needs a little-endian machine with 8-byte integers")
    return ids.tobytes()


EMPTY_CONTEXT = token_hash([])
