"""Predict the time to first token of a blend and of a full prefill."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CostModel", "CostSample", "Work"]


@dataclass(frozen=True)
class Work:
    """A request's tokens. `num_prefilled` go through vLLM's own forward; of a blend, `num_reused` come from the store,
    `num_probed` go through the connector's probe and `num_repaired` through its repair."""

    num_prefilled: int
    num_reused: int = 0
    num_probed: int = 0
    num_repaired: int = 0

    @property
    def num_recomputed(self) -> int:
        """Tokens that go through a forward of the connector's."""
        return self.num_probed + self.num_repaired

    @property
    def num_passes(self) -> int:
        """Forwards of the connector's: one without tokens is not run."""
        return (self.num_probed > 0) + (self.num_repaired > 0)


@dataclass(frozen=True)
class CostSample:
    """One timed request."""

    ttft_ms: float
    work: Work


@dataclass(frozen=True)
class CostModel:
    """Milliseconds: fixed for every request, every blend and every pass of it, and for a token by what happens to it.

    Attention over a long context makes a prefilled token dearer than it is here. Where the two ways cost about the
    same, prompts are short.
    """

    fixed_ms: float
    blend_fixed_ms: float
    pass_fixed_ms: float
    prefilled_token_ms: float
    recomputed_token_ms: float
    reused_token_ms: float

    def full_ms(self, num_tokens: int) -> float:
        """Time to first token of a full prefill of `num_tokens`."""
        return self.fixed_ms + self.prefilled_token_ms * num_tokens

    def blended_ms(self, work: Work) -> float:
        """Time to first token of a blend."""
        tokens = (
            self.reused_token_ms * work.num_reused
            + self.recomputed_token_ms * work.num_recomputed
            + self.prefilled_token_ms * work.num_prefilled
        )
        return self.fixed_ms + self.blend_fixed_ms + self.pass_fixed_ms * work.num_passes + tokens

    @classmethod
    def fit(
        cls,
        *,
        full: tuple[CostSample, CostSample],
        reuse: tuple[CostSample, CostSample],
        repair: tuple[CostSample, CostSample],
    ) -> "CostModel":
        """Fit to a short and a long request of each kind; the blends of `repair` take equally many passes.

        No cost comes out negative, however noisy the times are. Raises ValueError where a pair does not differ in
        length.
        """
        fixed, per_prefilled = _line([(sample.work.num_prefilled, sample.ttft_ms) for sample in full])
        blend_fixed, per_reused = _line(
            [
                (sample.work.num_reused, sample.ttft_ms - fixed - per_prefilled * sample.work.num_prefilled)
                for sample in reuse
            ]
        )
        without_passes = [
            fixed + blend_fixed + per_prefilled * sample.work.num_prefilled + per_reused * sample.work.num_reused
            for sample in repair
        ]
        passes_fixed, per_recomputed = _line(
            [
                (sample.work.num_recomputed, sample.ttft_ms - ms)
                for sample, ms in zip(repair, without_passes, strict=True)
            ]
        )
        return cls(
            fixed_ms=fixed,
            blend_fixed_ms=blend_fixed,
            pass_fixed_ms=passes_fixed / repair[0].work.num_passes,
            prefilled_token_ms=per_prefilled,
            recomputed_token_ms=per_recomputed,
            reused_token_ms=per_reused,
        )


def _line(times: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The line through a short and a long request's (tokens, ms): at no tokens and for each more, neither below 0."""
    (few, short_ms), (many, long_ms) = times
    if many <= few:
        raise ValueError(f"a cost for each token needs more tokens in the second sample, not {many - few} more")
    per_token = max(0.0, (long_ms - short_ms) / (many - few))
    return max(0.0, short_ms - per_token * few), per_token
