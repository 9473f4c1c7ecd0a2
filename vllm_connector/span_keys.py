"""The passage KV keys that a plan's spans stand for."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvblend.core.identity import EMPTY_CONTEXT, token_hash
from kvblend.core.plan import ContextPlan
from kvblend.store import PassageKVKey

__all__ = ["PlacedSpan", "place_spans"]


@dataclass(frozen=True)
class PlacedSpan:
    """Context tokens `[start, end)`. `stored_as` is (encode context, passage id), None for a fresh span.

    `exact`: the stored KV is what a full prefill would compute: it was encoded behind just what precedes it here.
    """

    start: int
    end: int
    stored_as: tuple[str, str] | None
    exact: bool

    def key(self, model_fingerprint: str, heads: tuple[int, int]) -> PassageKVKey:
        assert self.stored_as is not None
        return PassageKVKey(model_fingerprint, *self.stored_as, *heads)


def place_spans(plan: ContextPlan, token_ids: Sequence[int]) -> list[PlacedSpan]:
    """Lay a plan's spans over the prompt's token ids."""
    placed, start = [], 0
    for span in plan.spans:
        end = start + span.num_tokens
        stored_as = None
        exact = span.kind == "exact"
        if exact:
            stored_as = (EMPTY_CONTEXT, token_hash(token_ids[:end]))
        elif span.encode_context is not None:
            stored_as = (span.encode_context, token_hash(token_ids[start:end]))
            exact = span.encode_context == token_hash(token_ids[:start])
        placed.append(PlacedSpan(start, end, stored_as, exact))
        start = end
    return placed
