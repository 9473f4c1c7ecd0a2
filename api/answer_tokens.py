"""An answer's tokens with the likeliest ones in each one's place, as vLLM's completion chunks tell them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["NUM_LIKELIEST", "TOKEN_FIELDS", "AnswerToken", "answer_tokens"]

NUM_LIKELIEST = 20

TOKEN_FIELDS: Mapping[str, Any] = MappingProxyType(
    {"logprobs": NUM_LIKELIEST, "return_tokens_as_token_ids": True},
)
"""What a completion request asks with, so that its chunks can be read here."""


@dataclass(frozen=True)
class AnswerToken:
    """`log_probabilities`: natural, by token id, of the likeliest tokens and of the one that was taken."""

    token_id: int
    log_probabilities: Mapping[int, float]


def answer_tokens(chunk: Mapping[str, Any]) -> Iterator[AnswerToken]:
    """The tokens of a completion chunk's only choice; none where it says nothing of them."""
    for choice in chunk["choices"]:
        logprobs = choice.get("logprobs")
        if logprobs:
            for token, likeliest in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
                yield AnswerToken(_token_id(token), {_token_id(name): value for name, value in likeliest.items()})


def _token_id(name: str) -> int:
    return int(name.removeprefix("token_id:"))
