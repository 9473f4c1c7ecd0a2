"""Pack units into passages: full ones, cut at good places, the same places after an edit elsewhere."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from kvblend.core.identity import token_hash
from kvblend.retriever.sentences import Unit, split_long_unit
from kvblend.retriever.tokenizer import SEPARATOR, PassageTokenizer

__all__ = ["PassageText", "pack_units"]

MIN_FILL = 0.5


@dataclass(frozen=True)
class PassageText:
    """A passage's text, and its token ids with the separator's at their end."""

    text: str
    token_ids: tuple[int, ...]

    @cached_property
    def passage_id(self) -> str:
        return token_hash(self.token_ids)


def pack_units(
    units: Sequence[Unit], tokenizer: PassageTokenizer, *, context: str, max_tokens: int
) -> list[PassageText]:
    """Pack units in order into passages of at most `max_tokens` tokens, each beginning with the context.

    Each cut is taken among the ends of units that fill the passage to at least half: the best rank wins
    (a section's end before a block's before a sentence's), and among equals the one whose neighbouring
    units hash highest. That choice does not depend on where the passage began, so after an edit the cuts
    soon fall where they fell before, and the passages there keep their ids.
    """
    left = list(units)
    passages: list[PassageText] = []
    while left:
        num_fitting, passage = _longest_fitting(left, tokenizer, context=context, max_tokens=max_tokens)
        if passage is None:
            allowed = max(1, min(left[0].num_tokens, max_tokens) * 3 // 4)
            pieces = split_long_unit(left[0], tokenizer, max_tokens=allowed)
            assert len(pieces) > 1, f"one character does not fit {max_tokens} tokens behind its context"
            left[:1] = pieces
            continue
        if num_fitting < len(left):
            num_taken = _choose_cut(left, num_fitting, min_tokens=MIN_FILL * max_tokens)
            if num_taken < num_fitting:
                passage = _render(left[:num_taken], tokenizer, context)
            num_fitting = num_taken
        assert len(passage.token_ids) <= max_tokens
        passages.append(passage)
        del left[:num_fitting]
    return passages


def _longest_fitting(
    units: Sequence[Unit], tokenizer: PassageTokenizer, *, context: str, max_tokens: int
) -> tuple[int, PassageText | None]:
    """How many units fit one passage, and that passage; (0, None) where not even the first does.

    The sum of the units' tokens is a guess only: tokens merge, or don't, where texts meet.
    """
    guess = 0
    budget = max_tokens - tokenizer.count(context + SEPARATOR)
    while guess < len(units) and budget >= units[guess].num_tokens:
        budget -= units[guess].num_tokens
        guess += 1
    num_units = max(guess, 1)
    passage = _render(units[:num_units], tokenizer, context)
    while len(passage.token_ids) > max_tokens:
        num_units -= 1
        if num_units == 0:
            return 0, None
        passage = _render(units[:num_units], tokenizer, context)
    while num_units < len(units):
        longer = _render(units[: num_units + 1], tokenizer, context)
        if len(longer.token_ids) > max_tokens:
            break
        num_units, passage = num_units + 1, longer
    return num_units, passage


def _choose_cut(units: Sequence[Unit], num_fitting: int, *, min_tokens: float) -> int:
    """How many of the units that fit to take, where more follow."""
    filled = list(accumulate(unit.num_tokens for unit in units[:num_fitting]))
    cuts = [count for count in range(1, num_fitting + 1) if units[count - 1].rank > 0]
    full_cuts = [count for count in cuts if filled[count - 1] >= min_tokens]
    if not full_cuts:
        return cuts[-1] if cuts else num_fitting
    following = sum(unit.num_tokens for unit in units[num_fitting : 2 * num_fitting])
    least_rest = min_tokens / 2 - following  # of what fits now: a last passage of a few tokens is of no use
    full_cuts = [count for count in full_cuts if filled[-1] - filled[count - 1] >= least_rest] or full_cuts
    return max(full_cuts, key=lambda count: (units[count - 1].rank, _place_hash(units[count - 1], units[count]), count))


def _place_hash(before: Unit, after: Unit) -> bytes:
    """A hash of the place between two units, the same wherever they stand."""
    return hashlib.blake2b(f"{before.text}\0{after.text}".encode(), digest_size=8).digest()


def _render(units: Sequence[Unit], tokenizer: PassageTokenizer, context: str) -> PassageText:
    body = "".join(unit.text + unit.gap for unit in units[:-1]) + units[-1].text
    text = f"{context}{SEPARATOR}{body}" if context else body
    return PassageText(text, tuple(tokenizer.encode_passage(text)))
