"""What the lab encodes passages behind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kvblend.api.encode_context import make_encode_context

__all__ = ["ENCODES", "PromptParts"]


@dataclass(frozen=True)
class PromptParts:
    """One question's prompt in tokens, and what else a passage may be encoded behind.

    `unrelated`: a passage of the set that is in no prompt; `related`: one retrieved for this question and not in its
    prompt, empty where there is none; `neutral`: the product's own warm context.
    """

    preamble: tuple[int, ...]
    passages: tuple[tuple[int, ...], ...]
    question: tuple[int, ...]
    unrelated: tuple[int, ...]
    related: tuple[int, ...]
    neutral: tuple[int, ...]

    @property
    def prompt(self) -> list[int]:
        return [*self.preamble, *(token for passage in self.passages for token in passage), *self.question]


ENCODES: Mapping[str, Callable[[PromptParts, int], tuple[int, ...]]] = MappingProxyType(
    {
        "alone": lambda parts, index: (),
        "preamble": lambda parts, index: parts.preamble,
        "warm": lambda parts, index: parts.preamble + parts.unrelated,
        "warm_exact_first": lambda parts, index: parts.preamble + (parts.unrelated if index else ()),
        "warm_neutral": lambda parts, index: make_encode_context(parts.preamble, parts.neutral).token_ids,
        "warm_related": lambda parts, index: parts.preamble + (parts.related or parts.unrelated),
    }
)
"""By name, the encode context of the passage at `index` in the prompt.

`warm_exact_first` stores the first passage behind the preamble alone, where it stands in this prompt: its KV is exact.
"""
