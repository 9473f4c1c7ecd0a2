"""One answer that the live guard has sampled, seen as it goes by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple
from uuid import uuid4

from kvblend.api.engine.answer_tokens import AnswerToken, answer_tokens
from kvblend.api.engine.full_prefill import full_prefill_tokens
from kvblend.api.engine.replicas import EngineFacts, Replica
from kvblend.api.quality.truncated_kl import answer_kl

__all__ = ["Comparison", "GuardSample", "can_be_sampled"]

MAX_TOKENS = 32
"""So many of an answer's first tokens are noted and compared."""

NOT_SAMPLED = (
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "logprob_token_ids",
    "return_tokens_as_token_ids",
    "echo",
    "use_beam_search",
)
"""Fields of a request that asks for log-probabilities itself, or whose answer is not one run of tokens."""


class Comparison(NamedTuple):
    """An answer against full prefill: mean KL in nats, the share of tokens that agree, and whether the first does."""

    kl: float
    agreement: float
    first_agrees: bool


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
        """Note the tokens of a chunk or of a whole answer; returns it as the caller gets it, who asked for no
        log-probabilities."""
        self.tokens = [*self.tokens, *answer_tokens(chunk)][:MAX_TOKENS]
        return {**chunk, "choices": [{**choice, "logprobs": None} for choice in chunk["choices"]]}

    async def compare(self) -> Comparison:
        """Prefill the prompt in full and compare, over the answer's first tokens.

        Each token's KL is the `truncated_kl` of full prefill, given the answer up to there, and what the answer was
        drawn from; it agrees where both hold the same token likeliest, whatever was drawn. Raises what `EngineClient`
        raises.
        """
        reference = await full_prefill_tokens(
            self.replica, self.facts, prompt_ids=self.prompt_ids, answer=self.tokens, cache_salt=uuid4().hex
        )
        agrees = [full.likeliest == ours.likeliest for full, ours in zip(reference, self.tokens, strict=True)]
        return Comparison(answer_kl(reference, self.tokens), fmean(agrees), agrees[0])
