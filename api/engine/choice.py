"""Which of several vLLM servers is to answer a prompt: the one that has most of its KV near, unless it is too busy."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvblend.core.control import KVName

__all__ = ["Candidate", "Wanted", "best_first"]

LOAD_FACTOR = 1.25
"""A server with more than so many times its share of all requests takes none for what it holds, as consistent hashing
with bounded loads has it."""


@dataclass(frozen=True)
class Wanted:
    """What a prompt would have near its server: of each passage its tokens, and the names of KV of which any would do.

    `session`: the same for prompts of the same context.
    """

    passages: Sequence[tuple[int, Sequence[KVName]]]
    session: str

    @property
    def names(self) -> list[KVName]:
        """All of them, each once."""
        return list(dict.fromkeys(name for _, names in self.passages for name in names))

    def num_held(self, held: set[KVName]) -> int:
        """Tokens of the passages of which some KV is in `held`."""
        return sum(num_tokens for num_tokens, names in self.passages if not held.isdisjoint(names))


@dataclass(frozen=True)
class Candidate:
    """A server: its URL, the requests that it works on or has waiting, and the tokens of a prompt that it has near."""

    url: str
    num_requests: int
    num_held: int


def best_first(candidates: Sequence[Candidate], session: str) -> list[int]:
    """The candidates' numbers: of those that are not too busy, by what they hold, then by load; then of the busy ones.

    Among equals, the same prompt context has the same order: whoever has answered it has it in vLLM's prefix cache.
    """
    limit = math.ceil(LOAD_FACTOR * (sum(each.num_requests for each in candidates) + 1) / max(1, len(candidates)))

    def place(number: int) -> tuple[bool, int, int, str]:
        each = candidates[number]
        is_busy = each.num_requests >= limit
        weight = hashlib.blake2b(f"{session} {each.url}".encode(), digest_size=8).hexdigest()
        return is_busy, 0 if is_busy else -each.num_held, each.num_requests, weight

    return sorted(range(len(candidates)), key=place)
