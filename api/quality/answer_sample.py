"""One answer over a blended context, seen as it goes by, to be compared with full prefill."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple, Self
from uuid import uuid4

from kvblend.api.engine.answer_tokens import NUM_LIKELIEST, AnswerToken, answer_tokens
from kvblend.api.engine.full_prefill import full_prefill_tokens
from kvblend.api.engine.replicas import EngineFacts, Replica
from kvblend.api.quality.truncated_kl import token_kls
from kvblend.core.errors import InvalidRequestError

__all__ = ["AnswerSample", "Comparison", "can_be_sampled"]

GUARD_TOKENS = 32
"""So many of an answer's first tokens are noted and compared for the live guard."""

WANTED_TOKENS = 256
"""The same where a request asks for it."""

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
    """An answer's tokens against full prefill: the KL of each in nats, and whether each agrees."""

    kls: list[float]
    agrees: list[bool]

    @property
    def kl(self) -> float:
        """The mean."""
        return fmean(self.kls)

    @property
    def agreement(self) -> float:
        """The share that agrees."""
        return fmean(self.agrees)

    @property
    def first_agrees(self) -> bool:
        return self.agrees[0]


def can_be_sampled(sampling: Mapping[str, Any]) -> bool:
    """Whether a request with these fields of vLLM can carry those of a sample."""
    return _in_the_way(sampling) is None


def _in_the_way(sampling: Mapping[str, Any]) -> str | None:
    for name in ("n", "best_of"):
        if sampling.get(name) not in (None, 1):
            return name
    given = (name for name in NOT_SAMPLED if not (sampling.get(name) is None or sampling[name] is False))
    return next(given, None)  # `logprobs: 0` asks for some


@dataclass
class AnswerSample:
    """An answer over a blended context, to be compared with a full prefill of the same tokens, over its first ones."""

    replica: Replica
    facts: EngineFacts
    prompt_ids: Sequence[int]
    tokens: list[AnswerToken] = field(default_factory=list)
    max_tokens: int = GUARD_TOKENS

    @classmethod
    def wanted(
        cls, replica: Replica, facts: EngineFacts, sampling: Mapping[str, Any], *, prompt_ids: Sequence[int]
    ) -> Self:
        """Of a request that asks how far its answer is from full prefill's.

        Raises InvalidRequestError where one of its fields, or its server, is in the way.
        """
        name = _in_the_way(sampling)
        if name is not None:
            raise InvalidRequestError(
                f"report_divergence cannot be had beside {name} {sampling[name]!r}: leave one of them out", param=name
            )
        if facts.info is not None and facts.info.max_raw_logprobs < NUM_LIKELIEST:
            raise InvalidRequestError(
                f"report_divergence needs log-probabilities of {NUM_LIKELIEST} tokens and the vLLM server gives "
                f"{facts.info.max_raw_logprobs}: see its --max-logprobs and --logprobs-mode",
                param="report_divergence",
            )
        return cls(replica, facts, prompt_ids, max_tokens=WANTED_TOKENS)

    def see(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """Note the tokens of a chunk or of a whole answer; returns it as the caller gets it, who asked for no
        log-probabilities."""
        self.tokens = [*self.tokens, *answer_tokens(chunk)][: self.max_tokens]
        return {**chunk, "choices": [{**choice, "logprobs": None} for choice in chunk["choices"]]}

    async def compare(self) -> Comparison:
        """Prefill the prompt in full and compare.

        Each token's KL is the `truncated_kl` of full prefill, given the answer up to there, and what the answer was
        drawn from; it agrees where both hold the same token likeliest, whatever was drawn. Raises what `EngineClient`
        raises.
        """
        reference = await full_prefill_tokens(
            self.replica, self.facts, prompt_ids=self.prompt_ids, answer=self.tokens, cache_salt=uuid4().hex
        )
        agrees = [full.likeliest == ours.likeliest for full, ours in zip(reference, self.tokens, strict=True)]
        return Comparison(token_kls(reference, self.tokens), agrees)
