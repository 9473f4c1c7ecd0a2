"""The passage KV keys that a plan's spans stand for."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from kvblend.core.identity import prefix_hashes, token_hash
from kvblend.core.plan import ContextPlan
from kvblend.store import PassageKVKey

__all__ = ["Choice", "PlacedSpan", "place_spans"]


@dataclass(frozen=True)
class Choice:
    """A variant that would do. `exact`: it is what a full prefill would compute, encoded behind just what precedes it
    in the prompt; else `recompute_ratio` of it is to be recomputed."""

    encode_context: str
    passage_id: str
    exact: bool
    recompute_ratio: float = 0.0

    def key(self, model_fingerprint: str, heads: tuple[int, int]) -> PassageKVKey:
        return PassageKVKey(model_fingerprint, self.encode_context, self.passage_id, *heads)


@dataclass(frozen=True)
class PlacedSpan:
    """Context tokens `[start, end)`, and the variants that would do for them, best first: none of a fresh span.

    `num_cut`: how many tokens of their passage precede them, and how many follow them, that the prompt does not hold.
    """

    start: int
    end: int
    choices: tuple[Choice, ...]
    num_cut: tuple[int, int] = (0, 0)

    @property
    def num_stored_tokens(self) -> int:
        """Of the whole passage, as it is stored."""
        return self.end - self.start + sum(self.num_cut)

    @property
    def is_preamble(self) -> bool:
        return self.start == 0 and any(choice.exact for choice in self.choices)

    @property
    def is_passage(self) -> bool:
        return bool(self.choices) and not self.is_preamble


def place_spans(plan: ContextPlan, token_ids: Sequence[int]) -> list[PlacedSpan]:
    """Lay a plan's spans over the prompt's token ids."""
    ends = list(accumulate(span.num_tokens for span in plan.spans))
    parts = [token_ids[end - span.num_tokens : end] for span, end in zip(plan.spans, ends, strict=True)]
    befores = prefix_hashes(parts, salt=plan.salt)
    placed = []
    for span, end, part, before in zip(plan.spans, ends, parts, befores, strict=True):
        choices: tuple[Choice, ...] = ()
        num_cut = 0, 0
        if span.kind == "exact":
            choices = (Choice(token_hash([], salt=plan.salt), token_hash(part), exact=True),)
        elif span.kind == "passage":
            cut_before, cut_after = (span.cut.before, span.cut.after) if span.cut else ((), ())
            num_cut = len(cut_before), len(cut_after)
            passage_id = token_hash([*cut_before, *part, *cut_after])
            ratios = span.recompute_ratios or (plan.recompute_ratio,) * len(span.encode_contexts)
            exact = None if cut_before else before  # behind its own beginning, which is missing here, nothing is exact
            choices = tuple(
                Choice(own, passage_id, exact=own == exact, recompute_ratio=0.0 if own == exact else ratio)
                for own, ratio in zip(span.encode_contexts, ratios, strict=True)
            )
        placed.append(PlacedSpan(end - span.num_tokens, end, choices, num_cut))
    return placed
