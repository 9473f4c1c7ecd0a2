"""Hashes of short runs of tokens, the grams, at every place of a prompt and at every few places of a passage.

    passage   [gram ]  [gram ]  [gram ]  ...      one every STRIDE tokens, kept in an index
    prompt    [gram ][gram ][gram ] ...           one at every token, looked up there
               [gram ][gram ][gram ]

Whatever run of GRAM_TOKENS + STRIDE - 1 tokens of a passage a prompt holds, one of the passage's grams lies in it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["GRAM_TOKENS", "STRIDE", "gram_hashes", "strided_grams"]

GRAM_TOKENS = 16
STRIDE = 17

BASE = 0x9E3779B97F4A7C15
SPREAD = 0xBF58476D1CE4E5B9


def gram_hashes(token_ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash the gram that begins at each token: uint64 `[max(0, n - GRAM_TOKENS + 1)]`.

    A polynomial over the tokens modulo 2^64, of twice as many tokens in each step; equal hashes are a guess only.
    """
    hashes, factor = _mixed(token_ids.astype(np.uint64)), BASE
    length = 1
    while length < GRAM_TOKENS:
        if len(hashes) <= length:
            return np.empty(0, np.uint64)
        hashes = hashes[:-length] * np.uint64(factor) + hashes[length:]
        factor, length = factor * factor % (1 << 64), 2 * length
    return _mixed(hashes)


def strided_grams(passages: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the passages' grams at tokens 0, STRIDE, ..., one passage's behind the other's; and of each passage
    how many there are."""
    lengths = np.array([len(passage) for passage in passages], np.int64)
    counts = np.maximum(0, (lengths - GRAM_TOKENS) // STRIDE + 1)
    if not counts.sum():
        return np.empty(0, np.uint64), counts
    hashes = gram_hashes(np.concatenate(passages))
    starts = np.cumsum(lengths) - lengths
    numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return hashes[np.repeat(starts, counts) + numbers * STRIDE], counts


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all; one to one."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(SPREAD)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(BASE)
    return values ^ (values >> np.uint64(31))
