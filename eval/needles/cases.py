"""Needle cases: made-up facts put into passages of real text, and questions that ask for them."""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from kvblend.core.errors import InvalidRequestError

__all__ = ["KINDS", "NeedleCase", "NeedleCases"]

PLACES = (
    "Halden", "Brenna", "Orsta", "Vikra", "Melby", "Sandvik", "Korsa", "Rorvik", "Lunde", "Fossum", "Granly", "Tveit",
)  # fmt: skip
PEOPLE = (
    "Ada Brenner", "Ivo Lund", "Greta Moss", "Jonas Falk", "Rosa Berg", "Emil Strand", "Nora Vale", "Karl Winter",
)  # fmt: skip
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class NeedleCase:
    """`gold` are the values that the question asks for, `planted` all that stand in the passages, `gold` among them."""

    kind: str
    question: str
    gold: tuple[str, ...]
    planted: tuple[str, ...]
    passages: tuple[str, ...]


@dataclass(frozen=True)
class _Form:
    facts: tuple[str, ...]
    question: str
    gold: tuple[str, ...]
    planted: tuple[str, ...]


def _fact(place: str, code: str) -> str:
    return f"The access code of the {place} station is {code}."


def _one(places: Sequence[str], person: str, codes: Sequence[str]) -> _Form:
    question = f"What is the access code of the {places[0]} station?"
    return _Form((_fact(places[0], codes[0]),), question, (codes[0],), (codes[0],))


def _pair(places: Sequence[str], person: str, codes: Sequence[str]) -> _Form:
    facts = tuple(_fact(place, code) for place, code in zip(places, codes, strict=True))
    question = f"What are the access codes of the {places[0]} station and the {places[1]} station?"
    return _Form(facts, question, tuple(codes), tuple(codes))


def _chain(places: Sequence[str], person: str, codes: Sequence[str]) -> _Form:
    facts = (f"{person} works at the {places[0]} station.", _fact(places[0], codes[0]))
    question = f"What is the access code of the station where {person} works?"
    return _Form(facts, question, (codes[0],), (codes[0],))


def _choice(places: Sequence[str], person: str, codes: Sequence[str]) -> _Form:
    chain = _chain(places, person, codes)
    return _Form((*chain.facts, _fact(places[1], codes[1])), chain.question, chain.gold, tuple(codes))


KINDS: Mapping[str, Callable[[Sequence[str], str, Sequence[str]], _Form]] = MappingProxyType(
    {"one": _one, "chain": _chain, "choice": _choice, "pair": _pair}
)
"""`one`: the answer is one passage's fact. `chain`: the fact of one passage leads to that of another. `choice`: as
`chain`, and a third passage has a fact that would do but for the first. `pair`: the answer is the facts of two."""


class NeedleCases:
    """Cases over `texts`, the same ones for the same seed however many are asked for; the kinds take turns.

    Passages have about `passage_tokens` tokens and begin and end anywhere in the text. `unrelated` is text that no
    case holds. Raises InvalidRequestError where the text or the passages are too few.
    """

    def __init__(
        self,
        texts: Sequence[str],
        encode: Callable[[str], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        *,
        num_passages: int,
        passage_tokens: int,
        seed: int,
    ) -> None:
        if num_passages < 3:
            raise InvalidRequestError(f"{num_passages} passages; the facts of a question need 3", param="num_passages")
        self._encode, self._decode = encode, decode
        self._num_passages, self._passage_tokens, self._seed = num_passages, passage_tokens, seed
        whole = "\n".join(texts)
        self._places = [name for name in PLACES if name not in whole]
        self._people = [name for name in PEOPLE if name not in whole]
        numbers = set(re.findall(r"\d+", whole))
        self._codes = [str(code) for code in range(1000, 10_000) if str(code) not in numbers]
        shuffled = random.Random(seed).sample(texts, len(texts))
        kept, num_used = self._take(shuffled, passage_tokens)
        self.unrelated = decode(kept)
        self._texts = shuffled[num_used:]
        self._take(self._texts, num_passages * passage_tokens)

    def take(self, num_cases: int) -> Iterator[NeedleCase]:
        """The first `num_cases` cases."""
        kinds = list(KINDS)
        return (self._case(index, kinds[index % len(kinds)]) for index in range(num_cases))

    def _case(self, index: int, kind: str) -> NeedleCase:
        chance = random.Random(f"{self._seed} {index}")
        places = chance.sample(self._places, 2)
        form = KINDS[kind](places, chance.choice(self._people), chance.sample(self._codes, 2))
        size = self._passage_tokens
        ids, _ = self._take(chance.sample(self._texts, len(self._texts)), self._num_passages * size)
        passages = [ids[start : start + size] for start in range(0, len(ids), size)]
        texts = [self._decode(passage) for passage in passages]
        places_of_facts = chance.sample(range(self._num_passages), len(form.facts))
        for place, fact in zip(places_of_facts, form.facts, strict=True):
            texts[place] = self._plant(passages[place], fact, chance)
        return NeedleCase(kind, form.question, form.gold, form.planted, tuple(texts))

    def _plant(self, passage: Sequence[int], fact: str, chance: random.Random) -> str:
        """The fact between two sentences of the passage, which makes room for it at its end."""
        room = len(self._encode(f" {fact}"))
        sentences = SENTENCE_END.split(self._decode(passage[: len(passage) - room]))
        place = chance.randrange(1, len(sentences)) if len(sentences) > 1 else 0
        return " ".join([*sentences[:place], fact, *sentences[place:]])

    def _take(self, texts: Sequence[str], num_tokens: int) -> tuple[list[int], int]:
        """The first `num_tokens` tokens of the texts, and how many texts they come from."""
        ids: list[int] = []
        for num_used, text in enumerate(texts, start=1):
            ids += self._encode(f"{text} ".lstrip())
            if len(ids) >= num_tokens:
                return ids[:num_tokens], num_used
        raise InvalidRequestError(f"the text has {len(ids)} tokens where {num_tokens} are needed")
