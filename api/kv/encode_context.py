"""The tokens in front of a passage when its KV is computed: `[preamble][warm context]`, cut to whole blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from kvblend.core.identity import token_hash

__all__ = ["NO_CONTEXT", "EncodeContext", "default_warm_context", "make_encode_context"]

ALIGNMENT = 256
"""Tokens. A multiple fills whole vLLM blocks of 16, 32, 64 and 128 tokens, which its prefix cache then gives to
every passage after the first."""

MIN_WARM_TOKENS = 128


@dataclass(frozen=True)
class EncodeContext:
    """The preamble's tokens, then the warm context's. `salt` is its tenant's: KV behind it is no other's."""

    token_ids: tuple[int, ...]
    num_preamble: int
    salt: str | None = None

    @property
    def preamble_ids(self) -> tuple[int, ...]:
        return self.token_ids[: self.num_preamble]

    @cached_property
    def hash(self) -> str:
        """Its name in a passage KV's key."""
        return token_hash(self.token_ids, salt=self.salt)

    @property
    def of_preamble(self) -> "EncodeContext":
        """What the preamble itself is encoded behind: nothing."""
        return EncodeContext((), 0, self.salt)


NO_CONTEXT = EncodeContext((), 0)
"""What is in front of a preamble of no tenant in particular."""


def default_warm_context() -> str:
    """A neutral text like a passage, of no corpus in particular; about 900 tokens."""
    return files("kvblend.api.kv").joinpath("warm_context.txt").read_text(encoding="utf-8")


def make_encode_context(
    preamble_ids: Sequence[int], warm_ids: Sequence[int], *, salt: str | None = None
) -> EncodeContext:
    """Put preamble and warm context together.

    The total is the first multiple of 256 that leaves room for 128 warm tokens; where the warm context is too short
    for it, the last multiple that it reaches; where it reaches none, all of it. No warm tokens: the preamble alone.
    The warm context loses tokens at its beginning: it ends as a passage does, so that the next begins as one.
    """
    num_available = len(preamble_ids) + len(warm_ids)
    num_wanted = -(-(len(preamble_ids) + MIN_WARM_TOKENS) // ALIGNMENT) * ALIGNMENT
    num_total = min(num_wanted, num_available // ALIGNMENT * ALIGNMENT)
    if num_total <= len(preamble_ids):
        num_total = num_available
    return EncodeContext((*preamble_ids, *warm_ids[num_available - num_total :]), len(preamble_ids), salt)
