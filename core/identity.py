"""Content hashes that name token sequences."""

import hashlib
from array import array
from collections.abc import Sequence

__all__ = ["EMPTY_CONTEXT", "token_hash"]


def token_hash(token_ids: Sequence[int]) -> str:
    """Hash token ids, each as 8 little-endian bytes, with SHA-256; returns 64 hex digits.

    Of a passage's tokens it is the passage id; of the tokens in front of a passage when its KV was
    computed it is the encode context.
    """
    ids = array("q", token_ids)
    if ids.itemsize != 8 or array("H", [1]).tobytes() != b"\x01\x00":  # pragma: no cover
        raise RuntimeError("kvblend needs a little-endian machine with 8-byte integers")
    return hashlib.sha256(ids.tobytes()).hexdigest()


EMPTY_CONTEXT = token_hash([])
