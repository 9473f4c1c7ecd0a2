"""What the lab encodes passages behind."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from kvblend.api.kv.encode_context import make_encode_context
from kvblend.eval.quality.prompt_parts import PromptParts, Tokens

__all__ = ["ENCODES"]

TAIL_TOKENS = 256
NUM_SIMILAR = 2
"""Passages that FusionRAG's encode puts in front."""


def _joined(passages: Iterable[Tokens]) -> Tokens:
    return tuple(token for passage in passages for token in passage)


def _neutral(parts: PromptParts) -> Tokens:
    return make_encode_context(parts.preamble, parts.neutral).token_ids


def _document(parts: PromptParts, index: int) -> Tokens:
    return _neutral(parts) + _joined(parts.surroundings[index].preceding)


def _document_previous(parts: PromptParts, index: int) -> Tokens:
    preceding = parts.surroundings[index].preceding
    return parts.preamble + preceding[-1] if preceding else _neutral(parts)


def _document_tail(parts: PromptParts, index: int) -> Tokens:
    tail = _joined(parts.surroundings[index].preceding)[-TAIL_TOKENS:]
    return parts.preamble + tail if tail else _neutral(parts)


def _title(parts: PromptParts, index: int) -> Tokens:
    return make_encode_context(parts.preamble, parts.neutral + parts.surroundings[index].title).token_ids


def _fits(parts: PromptParts, index: int) -> Tokens:
    return parts.preamble + (parts.passages[index - 1] if index else ())


def _half_fits(parts: PromptParts, index: int) -> Tokens:
    return _fits(parts, index) if index % 2 else _document(parts, index)


def _fusionrag(parts: PromptParts, index: int) -> Tokens:
    similar = parts.surroundings[index].similar[:NUM_SIMILAR]
    return parts.preamble + _joined(similar)


def _cachecraft(parts: PromptParts, index: int) -> Tokens:
    return parts.preamble + _joined(parts.surroundings[index].former)


ENCODES: Mapping[str, Callable[[PromptParts, int], Tokens]] = MappingProxyType(
    {
        "alone": lambda parts, index: (),
        "preamble": lambda parts, index: parts.preamble,
        "warm": lambda parts, index: parts.preamble + parts.unrelated,
        "warm_exact_first": lambda parts, index: parts.preamble + (parts.unrelated if index else ()),
        "warm_neutral": lambda parts, index: _neutral(parts),
        "warm_related": lambda parts, index: parts.preamble + (parts.related or parts.unrelated),
        "title": _title,
        "document": _document,
        "document_previous": _document_previous,
        "document_tail": _document_tail,
        "fits": _fits,
        "half_fits": _half_fits,
        "fusionrag": _fusionrag,
        "cachecraft": _cachecraft,
    }
)
"""By name, the encode context of the passage at `index` in the prompt.

`warm_exact_first` stores the first passage behind the preamble alone, where it stands in this prompt: its KV is exact.
`title`: the document's title line ends the neutral context. `document`: all of the document's passages before it,
behind the neutral context; `document_previous`: the one before it, `document_tail`: the last 256 tokens before it, both
behind the preamble, and the neutral context for a document's first. `fits`: the passage that stands before it in this
prompt; the first passage, and so the second, is exact. `half_fits`: the second, fourth, ... passage as `fits`, the
others as `document`. `fusionrag`: the passages that are most like it (`eval/rivals/fusionrag.py`). `cachecraft`:
what stood before it in another question's prompt (`eval/rivals/cachecraft.py`).
"""
