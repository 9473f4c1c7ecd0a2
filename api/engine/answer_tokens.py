"""An answer's tokens with the likeliest ones in each one's place, as vLLM's completion chunks tell them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["CHAT_TOKEN_FIELDS", "NUM_LIKELIEST", "TOKEN_FIELDS", "AnswerToken", "answer_tokens"]

NUM_LIKELIEST = 20

TOKEN_FIELDS: Mapping[str, Any] = MappingProxyType(
    {"logprobs": NUM_LIKELIEST, "return_tokens_as_token_ids": True},
)
"""What a completion request asks with, so that its chunks can be read here."""

CHAT_TOKEN_FIELDS: Mapping[str, Any] = MappingProxyType(
    {"logprobs": True, "top_logprobs": NUM_LIKELIEST, "return_tokens_as_token_ids": True},
)
"""The same of a chat."""


@dataclass(frozen=True)
class AnswerToken:
    """`log_probabilities`: natural, by token id, of the likeliest tokens and of the one that was taken."""

    token_id: int
    log_probabilities: Mapping[int, float]

    @property
    def likeliest(self) -> int:
        """The token that the model holds likeliest, whatever was taken."""
        return max(self.log_probabilities, key=self.log_probabilities.__getitem__)


def answer_tokens(chunk: Mapping[str, Any]) -> Iterator[AnswerToken]:
    """The tokens of a chunk's only choice, or of a whole answer's; none where it says nothing of them."""
    for choice in chunk["choices"]:
        logprobs = choice.get("logprobs") or {}
        for said in logprobs.get("content") or ():  # a chat's
            likeliest = {_token_id(each["token"]): each["logprob"] for each in (said, *said["top_logprobs"])}
            yield AnswerToken(_token_id(said["token"]), likeliest)
        for token, tops in zip(logprobs.get("tokens", ()), logprobs.get("top_logprobs", ()), strict=True):
            yield AnswerToken(_token_id(token), {_token_id(name): value for name, value in tops.items()})


def _token_id(name: str) -> int:
    return int(name.removeprefix("token_id:"))
