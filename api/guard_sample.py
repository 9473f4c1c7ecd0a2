"""One answer that the live guard has sampled, seen as it goes by."""

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from kvblend.api.answer_tokens import TOKEN_FIELDS, AnswerToken, answer_tokens
from kvblend.api.replica import EngineFacts, Replica
from kvblend.api.truncated_kl import truncated_kl
from kvblend.core.errors import EngineUnavailableError

__all__ = ["GuardSample", "can_be_sampled"]

MAX_TOKENS = 32
"""So many of an answer's first tokens are noted and compared."""

NOT_SAMPLED = (
    "logprobs",
    "prompt_logprobs",
    "logprob_token_ids",
    "return_tokens_as_token_ids",
    "echo",
    "use_beam_search",
)
"""Fields of a request that asks for log-probabilities itself, or whose answer is not one run of tokens."""


def can_be_sampled(sampling: Mapping[str, Any]) -> bool:
    """Whether a request with these fields of vLLM can carry the guard's own."""
    one_choice = sampling.get("n") in (None, 1) and sampling.get("best_of") in (None, 1)
    return one_choice and all(sampling.get(name) in (None, False) for name in NOT_SAMPLED)


@dataclass
class GuardSample:
    """An answer over a blended context, to be compared with a full prefill of the same tokens."""

    replica: Replica
    facts: EngineFacts
    prompt_ids: Sequence[int]
    tokens: list[AnswerToken] = field(default_factory=list)

    def see(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """Note a chunk's tokens; returns it as the caller, who asked for no log-probabilities, gets it."""
        self.tokens = [*self.tokens, *answer_tokens(chunk)][:MAX_TOKENS]
        return {**chunk, "choices": [{**choice, "logprobs": None} for choice in chunk["choices"]]}

    async def kl(self) -> float:
        """Prefill the prompt in full and compare; the mean over the answer's first tokens, in nats.

        Each token's is the `truncated_kl` of full prefill, given the answer up to there, and what the answer was drawn
        from. Raises what `EngineClient` raises.
        """
        divergences = [
            truncated_kl(full.log_probabilities, blended.log_probabilities)
            for full, blended in zip(await self._full(), self.tokens, strict=True)
        ]
        return sum(divergences) / len(divergences)

    async def _full(self) -> list[AnswerToken]:
        """What full prefill has in place of each of the answer's tokens.

        Asking for a prompt's log-probabilities would make vLLM compute the logits of all its tokens at once, which may
        not fit the device. So the model answers greedily, and where it departs from the answer, is asked again from
        behind the answer's own token, over its own blocks: the salt keeps all others away, blended ones above all.
        """
        salt = uuid4().hex
        found: list[AnswerToken] = []
        while len(found) < len(self.tokens):
            more = await self._greedy(self.tokens[: len(found)], self.tokens[len(found) :], salt=salt)
            if not more:
                raise EngineUnavailableError(f"the vLLM server at {self.replica.engine.url} gives no log-probabilities")
            found += more
        return found

    async def _greedy(
        self, done: Sequence[AnswerToken], left: Sequence[AnswerToken], *, salt: str
    ) -> list[AnswerToken]:
        """The model's own tokens behind `done`, up to the first that is not `left`'s."""
        body = {
            "model": self.facts.model,
            "prompt": [*self.prompt_ids, *(token.token_id for token in done)],
            "max_tokens": len(left),
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_salt": salt,
            **TOKEN_FIELDS,
        }
        found: list[AnswerToken] = []
        async with aclosing(self.replica.engine.stream("/v1/completions", body)) as chunks:
            async for chunk in chunks:
                for token in answer_tokens(chunk):
                    found.append(token)
                    if token.token_id != left[len(found) - 1].token_id:
                        return found
        return found
