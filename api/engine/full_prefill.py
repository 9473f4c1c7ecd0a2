"""What full prefill has in place of each token of an answer that was given otherwise."""

from collections.abc import Sequence
from contextlib import aclosing

from kvblend.api.engine.answer_tokens import TOKEN_FIELDS, AnswerToken, answer_tokens
from kvblend.api.engine.replicas import EngineFacts, Replica
from kvblend.core.errors import EngineUnavailableError

__all__ = ["full_prefill_tokens"]


async def full_prefill_tokens(
    replica: Replica, facts: EngineFacts, *, prompt_ids: Sequence[int], answer: Sequence[AnswerToken], cache_salt: str
) -> list[AnswerToken]:
    """Prefill the prompt in full; returns its likeliest tokens at each of the answer's, given the answer up to there.

    `cache_salt` keeps blended blocks away; over one prompt it may be the same for several answers, which then share
    the prefill. Raises what `EngineClient` raises.

    Asking for a prompt's log-probabilities would make vLLM compute the logits of all its tokens at once, which may not
    fit the device. So the model answers greedily, and where it departs from the answer, is asked again from behind the
    answer's own token, over its own blocks.
    """
    found: list[AnswerToken] = []
    while len(found) < len(answer):
        prompt = [*prompt_ids, *(token.token_id for token in answer[: len(found)])]
        more = await _greedy(replica, facts, prompt, answer[len(found) :], cache_salt=cache_salt)
        if not more:
            raise EngineUnavailableError(f"the vLLM server at {replica.engine.url} gives no log-probabilities")
        found += more
    return found


async def _greedy(
    replica: Replica, facts: EngineFacts, prompt: Sequence[int], left: Sequence[AnswerToken], *, cache_salt: str
) -> list[AnswerToken]:
    """The model's own tokens behind `prompt`, up to the first that is not `left`'s."""
    body = {
        "model": facts.model,
        "prompt": prompt,
        "max_tokens": len(left),
        "temperature": 0.0,
        "ignore_eos": True,
        "cache_salt": cache_salt,
        **TOKEN_FIELDS,
    }
    found: list[AnswerToken] = []
    async with aclosing(replica.engine.stream("/v1/completions", body)) as chunks:
        async for chunk in chunks:
            for token in answer_tokens(chunk):
                found.append(token)
                if token.token_id != left[len(found) - 1].token_id:
                    return found
    return found
