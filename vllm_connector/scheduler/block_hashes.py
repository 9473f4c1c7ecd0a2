"""Keep blended blocks apart in vLLM's prefix cache."""

import hashlib
from collections.abc import Callable
from typing import Any

__all__ = ["SaltedHashes"]


class SaltedHashes:
    """A request's block hashes, salted from some block on.

    A block that holds blended KV must never be found by a prompt that wants exact KV. vLLM hashes a block by its
    tokens and its predecessor's hash, so salting the first blended block's hash salts all that follow it, those
    of generated tokens included. The exact hashes are kept, so that the salt can begin elsewhere after a preemption.
    """

    def __init__(self, request: Any, salt: bytes | None) -> None:
        """`salt` is None where the request's own `cache_salt` sets all of its blocks apart: nothing is changed then."""
        self._request, self._salt = request, salt
        self._exact = list(request.block_hashes)
        self._exact_hasher: Callable[[Any], list[Any]] | None = request._block_hasher
        self.start: int | None = 0 if salt is None else None

    @property
    def are_apart(self) -> bool:
        """Whether the request's `cache_salt` is all the salt there is."""
        return self._salt is None

    def salted_from(self, start: int) -> list[Any]:
        """The prompt's block hashes, those from block `start` on salted; the request is not changed."""
        return self._exact[:start] + [self._salted(block_hash) for block_hash in self._exact[start:]]

    @property
    def exact(self) -> list[Any]:
        """The prompt's block hashes without salt."""
        return self._exact

    def apply(self, start: int) -> None:
        """Salt the request's hashes from block `start` on, those of blocks to come included."""
        if self._exact_hasher is None or self.are_apart:
            return
        self.start = start
        self._request._block_hasher = self._hash_new_blocks
        self._request.block_hashes[:] = self.salted_from(start)
        self._request.update_block_hashes()

    def lift(self) -> bool:
        """Undo `apply`: no block of the request is to hold blended KV. Returns whether the hashes are others now."""
        if self._exact_hasher is None or self.start is None or self.are_apart:
            return False
        self.start = None
        self._request._block_hasher = self._exact_hasher
        self._request.block_hashes[:] = self._exact
        self._request.update_block_hashes()
        return True

    def _hash_new_blocks(self, request: Any) -> list[Any]:
        assert self._exact_hasher is not None and self.start is not None
        new = self._exact_hasher(request)
        num_exact = max(0, self.start - len(request.block_hashes))
        if len(request.block_hashes) > self.start:
            return new  # chained to a salted hash already
        return new[:num_exact] + [self._salted(block_hash) for block_hash in new[num_exact:]]

    def _salted(self, block_hash: Any) -> Any:
        assert self._salt is not None
        return type(block_hash)(hashlib.sha256(self._salt + bytes(block_hash)).digest())
