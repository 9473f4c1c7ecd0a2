"""Passages that one pass of the model encodes together."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from kvblend.api.kv.encode_context import EncodeContext
from kvblend.api.kv.passage_kv import KVName
from kvblend.core.identity import prefix_hashes, token_hash

__all__ = ["EncodePart", "EncodeRun"]

Tokens = tuple[int, ...]


class EncodePart(NamedTuple):
    """A passage's KV by name, and the tokens `[start, end)` of the run's prompt that it is of."""

    name: KVName
    start: int
    end: int


@dataclass(frozen=True)
class EncodeRun:
    """`[context][passage]...[passage]`: each passage is encoded behind the context and the passages before it.

    `left_out`: the places of passages that stand there for those behind them, and are not encoded themselves.
    """

    context: EncodeContext
    passages: tuple[Tokens, ...]
    left_out: frozenset[int] = frozenset()

    @classmethod
    def alone(cls, context: EncodeContext, token_ids: Sequence[int]) -> "EncodeRun":
        """One passage behind the context."""
        return cls(context, (tuple(token_ids),))

    @classmethod
    def preamble(cls, context: EncodeContext) -> "EncodeRun":
        """A context's preamble, behind nothing."""
        return cls.alone(context.of_preamble, context.preamble_ids)

    @cached_property
    def parts(self) -> tuple[EncodePart, ...]:
        """What is encoded, in order."""
        parts, start = [], len(self.context.token_ids)
        _, *before = prefix_hashes((self.context.token_ids, *self.passages), salt=self.context.salt)
        for index, (context, passage) in enumerate(zip(before, self.passages, strict=True)):
            end = start + len(passage)
            if index not in self.left_out:
                parts.append(EncodePart((context, token_hash(passage)), start, end))
            start = end
        return tuple(parts)

    @property
    def names(self) -> list[KVName]:
        """Of the KV that the run makes."""
        return [part.name for part in self.parts]

    @property
    def lengths(self) -> dict[KVName, int]:
        """How many tokens each has."""
        return {part.name: part.end - part.start for part in self.parts}

    def prompt(self, end: int) -> list[int]:
        """The run's first `end` tokens."""
        return [*self.context.token_ids, *(token for passage in self.passages for token in passage)][:end]

    def num_tokens(self, names: Collection[KVName]) -> int:
        """How many tokens those of its passages have that `names` names."""
        return sum(length for name, length in self.lengths.items() if name in names)
