"""Predict the time to first token of a blend and of a full prefill."""

from dataclasses import dataclass

__all__ = ["CostModel", "CostSample"]


@dataclass(frozen=True)
class CostSample:
    """One timed request. `num_prefilled` tokens went through vLLM's own forward; of a blend, `num_recomputed` through
    the connector's, the probe's included, and `num_reused` came from the store."""

    ttft_ms: float
    num_prefilled: int
    num_reused: int = 0
    num_recomputed: int = 0


@dataclass(frozen=True)
class CostModel:
    """Milliseconds: fixed for every request and for every blend, and for a token by what happens to it.

    Attention over a long context makes a prefilled token dearer than it is here. Where the two ways cost about the
    same, prompts are short.
    """

    fixed_ms: float
    blend_fixed_ms: float
    prefilled_token_ms: float
    recomputed_token_ms: float
    reused_token_ms: float

    def full_ms(self, num_tokens: int) -> float:
        """Time to first token of a full prefill of `num_tokens`."""
        return self.fixed_ms + self.prefilled_token_ms * num_tokens

    def blended_ms(self, *, num_reused: int, num_recomputed: int, num_prefilled: int) -> float:
        """Time to first token of a blend; the counts are those of `CostSample`."""
        tokens = (
            self.reused_token_ms * num_reused
            + self.recomputed_token_ms * num_recomputed
            + self.prefilled_token_ms * num_prefilled
        )
        return self.fixed_ms + self.blend_fixed_ms + tokens

    @classmethod
    def fit(
        cls, *, full: tuple[CostSample, CostSample], reuse: tuple[CostSample, CostSample], repair: CostSample
    ) -> "CostModel":
        """Fit to a short and a long full prefill, a short and a long full reuse, and a blend as long that recomputes.

        No cost comes out negative, however noisy the times are. Raises ValueError where a pair does not differ in
        length, or the last one recomputes no more than full reuse.
        """
        short, long = full
        per_prefilled = _slope(long.ttft_ms - short.ttft_ms, long.num_prefilled - short.num_prefilled)
        fixed = max(0.0, short.ttft_ms - per_prefilled * short.num_prefilled)
        few, many = (sample.ttft_ms - fixed - per_prefilled * sample.num_prefilled for sample in reuse)
        per_reused = _slope(many - few, reuse[1].num_reused - reuse[0].num_reused)
        blend_fixed = max(0.0, few - per_reused * reuse[0].num_reused)
        reused_part = fixed + blend_fixed + per_reused * repair.num_reused + per_prefilled * repair.num_prefilled
        return cls(
            fixed_ms=fixed,
            blend_fixed_ms=blend_fixed,
            prefilled_token_ms=per_prefilled,
            recomputed_token_ms=_slope(repair.ttft_ms - reused_part, repair.num_recomputed),
            reused_token_ms=per_reused,
        )


def _slope(difference_ms: float, num_tokens: int) -> float:
    if num_tokens <= 0:
        raise ValueError(f"a cost for each token needs more tokens in the second sample, not {num_tokens} more")
    return max(0.0, difference_ms / num_tokens)
