"""One answer that the live guard has sampled, seen as it goes by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from kvblend.api.answer_tokens import AnswerToken, answer_tokens
from kvblend.api.full_prefill import full_prefill_tokens
from kvblend.api.replica import EngineFacts, Replica
from kvblend.api.truncated_kl import answer_kl

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
    given = (sampling.get(name) for name in NOT_SAMPLED)
    return one_choice and all(value is None or value is False for value in given)  # `logprobs: 0` asks for some


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
        reference = await full_prefill_tokens(
            self.replica, self.facts, prompt_ids=self.prompt_ids, answer=self.tokens, cache_salt=uuid4().hex
        )
        return answer_kl(reference, self.tokens)
