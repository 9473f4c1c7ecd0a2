"""Split a parsed document into passages on the language model's own tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from kvblend.core.errors import InvalidRequestError
from kvblend.retriever.document import ParsedDocument
from kvblend.retriever.packing import PassageText, pack_units
from kvblend.retriever.parsers import parse_document
from kvblend.retriever.sections import LOWEST_LEVEL, Section, split_sections
from kvblend.retriever.sentences import BLOCK_GAP, Unit, split_long_unit
from kvblend.retriever.tokenizer import SEPARATOR, PassageTokenizer

__all__ = ["SPLITTER_VERSION", "SplitDocument", "Splitter", "split_document"]

SPLITTER_VERSION = 1
"""Raised with every change that makes other passages of the same document."""

MIN_PASSAGE_TOKENS = 16


@dataclass(frozen=True)
class Splitter:
    """Splits documents into passages of at most `passage_tokens` tokens, the separator's included.

    A passage holds one or more whole short sections, or a part of one long section. Each section's text
    stands under a line that names its headings, repeated in every passage of a long section. A
    sentence is split only where it alone is too long. The same document gives the same passages.

    Raises:
        InvalidRequestError: `passage_tokens` is below 16.
    """

    tokenizer: PassageTokenizer
    passage_tokens: int

    def __post_init__(self) -> None:
        if self.passage_tokens < MIN_PASSAGE_TOKENS:
            raise InvalidRequestError(
                f"passage_tokens is {self.passage_tokens}; it must be at least {MIN_PASSAGE_TOKENS}",
                param="passage_tokens",
            )

    def split(self, parsed: ParsedDocument) -> list[PassageText]:
        """Split a document; one without text gives no passage."""
        passages: list[PassageText] = []
        short: list[Unit] = []
        for section in split_sections(parsed, self.tokenizer, max_context_tokens=self.passage_tokens // 4):
            whole = self._as_unit(section)
            if whole is not None:
                if short:  # a cut in front of a higher heading is the better one
                    short[-1] = replace(short[-1], rank=3 + LOWEST_LEVEL - section.level)
                short.append(whole)
                continue
            passages.extend(self._pack(short))
            short = []
            passages.extend(self._pack(list(self._bounded(section)), context=section.context))
        passages.extend(self._pack(short))
        return passages

    def _pack(self, units: list[Unit], *, context: str = "") -> list[PassageText]:
        return pack_units(units, self.tokenizer, context=context, max_tokens=self.passage_tokens)

    def _as_unit(self, section: Section) -> Unit | None:
        """A section as one unit, or None where it alone is longer than a passage."""
        if sum(unit.num_tokens for unit in section.units) > 2 * self.passage_tokens:
            return None  # far beyond; not worth rendering
        body = "".join(unit.text + unit.gap for unit in section.units).rstrip()
        text = f"{section.context}{BLOCK_GAP}{body}" if section.context else body
        if len(self.tokenizer.encode_passage(text)) > self.passage_tokens:
            return None
        return Unit(text, BLOCK_GAP, 2, self.tokenizer.count(text))

    def _bounded(self, section: Section) -> Iterator[Unit]:
        """A long section's units, those split that do not fit a passage behind the section's context."""
        context = f"{section.context}{BLOCK_GAP}" if section.context else ""
        limit = self.passage_tokens - self.tokenizer.count(context + SEPARATOR)
        for unit in section.units:
            if unit.num_tokens > limit:
                yield from split_long_unit(unit, self.tokenizer, max_tokens=limit)
            else:
                yield unit


SplitDocument = Callable[[bytes, str, str, int], list[PassageText]]
"""`split_document` with a tokenizer of its own: of data, media type, name and passage tokens."""


def split_document(
    data: bytes, media_type: str, name: str, passage_tokens: int, *, tokenizer: PassageTokenizer
) -> list[PassageText]:
    """Parse a document and split it into passages; one without text gives none.

    Raises:
        InvalidRequestError: `passage_tokens` is below 16.
        UnsupportedDocumentError: no parser can read it.
    """
    splitter = Splitter(tokenizer, passage_tokens)
    return splitter.split(parse_document(data, media_type, name=name))
