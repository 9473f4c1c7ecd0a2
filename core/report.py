"""What happened to one blended request."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AnswerDivergence", "BlendFlops", "BlendReport", "PassageReport", "StepTimes", "TokenFate", "TokenReport"]

TokenFate = Literal["exact", "reused", "recomputed", "fresh"]
"""Of a context token: taken as it is; from stored passage KV; from there too, but selected and computed anew; computed
since nothing stored stood for it."""


class StepTimes(BaseModel, defer_build=True):
    """Milliseconds spent in each step before the question's prefill, summed over engine steps."""

    model_config = ConfigDict(extra="forbid")

    load: float = 0.0
    """Bringing passage KV to where vLLM reads it, rerotated."""
    probe: float = 0.0
    """The question's look over the context."""
    repair: float = 0.0
    """Computing selected and missing tokens."""


class PassageReport(BaseModel, defer_build=True):
    """Where the KV of one passage of the context came from, tokens `[start, start + num_tokens)` of the prompt.

    `tier` and `encode_context` are None where it was computed anew. `passed_over`: the tier that has it, where loading
    it from there would have taken longer than computing it, by what both took of late. `exact`: it was encoded behind
    just what precedes it in this prompt, and needs no repair. `recompute_ratio`: its share of tokens to recompute; of
    all passages' shares together the tokens are chosen that the answer depends on most.
    """

    model_config = ConfigDict(extra="forbid")

    start: int
    """Its first token in the prompt."""
    num_tokens: int
    """How many it has there."""
    tier: str | None = None
    encode_context: str | None = None
    passed_over: str | None = None
    exact: bool = False
    recompute_ratio: float = 0.0


class TokenReport(BaseModel, defer_build=True):
    """What became of every context token, from the prompt's first on.

    `fates`: runs of tokens that shared one. `scores`: what the probe gave each token, as the selector weighed it; None
    where there was nothing to choose; empty without a probe. `texts`: each token's own text; a character of several
    tokens stands at its last one. `passages`: tokens `[start, end)` of each passage, by its place in the prompt.
    """

    model_config = ConfigDict(extra="forbid")

    fates: list[tuple[TokenFate, int]]
    scores: list[float | None] = []
    texts: list[str] = []
    passages: list[tuple[int, int]] = []

    @classmethod
    def of(cls, fates: Iterable[TokenFate], scores: Sequence[float | None] = ()) -> Self:
        """Of each token's fate, and what the probe gave it."""
        return cls(fates=[(fate, len(list(run))) for fate, run in groupby(fates)], scores=list(scores))

    def longer(self, num_tokens: int) -> "TokenReport":
        """The same with so many fresh tokens behind."""
        if num_tokens == 0:
            return self
        scores = [*self.scores, *[None] * num_tokens] if self.scores else []
        return self.model_copy(update={"fates": [*self.fates, ("fresh", num_tokens)], "scores": scores})


class AnswerDivergence(BaseModel, defer_build=True):
    """How far an answer's tokens, from the first on, are from what full prefill holds in their places.

    `kls`: of each, in nats, KL(full prefill || blend) over the likeliest tokens of both and the rest as one, given the
    answer up to there. `agrees`: both hold the same token likeliest. `texts`: each token's own text; a character of
    several tokens stands at its last one.
    """

    model_config = ConfigDict(extra="forbid")

    kls: list[float]
    agrees: list[bool]
    texts: list[str]


class BlendFlops(BaseModel, defer_build=True):
    """Counted FLOPs up to the first token, a multiply and an add being two: of matrix products and attention.

    `computed`: of probe, repair, and what vLLM prefills behind; `full_prefill`: of the same prompt without any cache.
    """

    model_config = ConfigDict(extra="forbid")

    computed: int
    full_prefill: int


class BlendReport(BaseModel, defer_build=True):
    """How a request's context was made. Counts are of tokens.

    `outcome`: `blended`; `prefix_hit` (vLLM's own prefix cache held all that a blend would have made);
    or `prefilled` (nothing was reused from the store: `reason` says why).
    `exact` tokens were taken as they are (preamble, local prefix hit); `reused` tokens came from passage
    KV; `selected` of these were chosen by the selector; `recomputed` = selected + fresh + missed tokens.
    `calibrated`: the answer is held to a target KL: the model has a calibration, and the ratio used, or a full
    prefill in its place, meets the calibration's target or the one that the request names.
    `tiers` counts the reused tokens by the tier they came from; `passages` says it of each passage, in the prompt's
    order, of those that a blend made. `tokens` says it of each token, and `divergence` how far the answer is from full
    prefill's, where the request asks for it; None of an answer whose context was not blended. `flops`, too, are told
    of what was blended alone.
    """

    model_config = ConfigDict(extra="forbid")

    outcome: Literal["blended", "prefix_hit", "prefilled"]
    reason: str | None = None
    prompt_tokens: int = 0
    """Of the whole prompt."""
    context_tokens: int = 0
    """Of all before the question: preamble and passages."""
    exact_tokens: int = 0
    """Taken as they are."""
    reused_tokens: int = 0
    """From stored passage KV."""
    selected_tokens: int = 0
    """Of the reused ones, computed anew."""
    recomputed_tokens: int = 0
    """All that were computed: selected, fresh and missed."""
    missed_passages: int = 0
    """That were not stored, or not in time."""
    recompute_ratio: float | None = None
    """The one that was used."""
    selector: str | None = None
    """The one that chose."""
    calibrated: bool = False
    tiers: dict[str, int] = {}
    passages: list[PassageReport] = []
    tokens: TokenReport | None = None
    divergence: AnswerDivergence | None = None
    flops: BlendFlops | None = None
    steps_ms: StepTimes = Field(default_factory=StepTimes)
    """What each step took before the question's prefill."""
    ttft_ms: float | None = None
    """From the request to its first token, as the service or vLLM saw it; null where nobody did."""
