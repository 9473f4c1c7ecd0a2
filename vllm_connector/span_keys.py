"""The passage KV keys that a plan's spans stand for."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvblend.core.identity import EMPTY_CONTEXT, token_hash
from kvblend.core.plan import ContextPlan
from kvblend.store import PassageKVKey

__all__ = ["Choice", "PlacedSpan", "place_spans"]


@dataclass(frozen=True)
class Choice:
    """A variant that would do. `exact`: it is what a full prefill would compute, encoded behind just what precedes it
    in the prompt."""

    encode_context: str
    passage_id: str
    exact: bool

    def key(self, model_fingerprint: str, heads: tuple[int, int]) -> PassageKVKey:
        return PassageKVKey(model_fingerprint, self.encode_context, self.passage_id, *heads)


@dataclass(frozen=True)
class PlacedSpan:
    """Context tokens `[start, end)`, and the variants that would do for them, best first: none of a fresh span."""

    start: int
    end: int
    choices: tuple[Choice, ...]

    @property
    def is_preamble(self) -> bool:
        return self.start == 0 and any(choice.exact for choice in self.choices)

    @property
    def is_passage(self) -> bool:
        return bool(self.choices) and not self.is_preamble


def place_spans(plan: ContextPlan, token_ids: Sequence[int]) -> list[PlacedSpan]:
    """Lay a plan's spans over the prompt's token ids."""
    placed, start = [], 0
    for span in plan.spans:
        end = start + span.num_tokens
        choices: tuple[Choice, ...] = ()
        if span.kind == "exact":
            choices = (Choice(EMPTY_CONTEXT, token_hash(token_ids[:end]), exact=True),)
        elif span.kind == "passage":
            passage_id, before = token_hash(token_ids[start:end]), token_hash(token_ids[:start])
            choices = tuple(Choice(own, passage_id, exact=own == before) for own in span.encode_contexts)
        placed.append(PlacedSpan(start, end, choices))
        start = end
    return placed
