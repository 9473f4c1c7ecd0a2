"""What calibration measured of one model, and the recompute ratio that follows from it."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from kvblend.core.plan import SelectorName

__all__ = ["CALIBRATION_VERSION", "MAX_RATIO", "Calibration", "CurvePoint", "smallest_ratio"]

CALIBRATION_VERSION: Literal[1] = 1
MAX_RATIO = 0.6
"""Beyond this ratio a blend saves too little: a model that needs more is served by full prefill."""

KL = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CurvePoint(_Schema):
    """What was measured at one ratio, over all questions: the mean KL to full prefill in nats, the one-sided 95% upper
    confidence bound of that mean, and how often the token chosen is the one that full prefill holds likeliest."""

    recompute_ratio: Annotated[float, Field(ge=0.0, le=1.0)]
    kl: KL
    kl_upper95: KL
    agreement: Annotated[float, Field(ge=0.0, le=1.0)]


class Calibration(_Schema):
    """The measured curve of one model, and the smallest ratio that meets `target_kl` with confidence.

    `recompute_ratio` is None where no ratio below 0.6 meets it. `encode` says what passages were encoded behind:
    `default`, the service's own preamble and warm context. Passage tokens are the mean of the passages used;
    `created_at` is in seconds since the epoch.
    """

    version: Literal[1] = CALIBRATION_VERSION
    model: str
    model_fingerprint: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    dtype: str
    selector: SelectorName
    encode: Literal["default"] = "default"
    target_kl: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    recompute_ratio: Annotated[float, Field(ge=0.0, lt=MAX_RATIO)] | None
    num_questions: Annotated[int, Field(ge=1)]
    num_passages: Annotated[int, Field(ge=1)]
    passage_tokens: Annotated[float, Field(gt=0.0)]
    curve: Annotated[tuple[CurvePoint, ...], Field(min_length=1)]
    created_at: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        ratios = [point.recompute_ratio for point in self.curve]
        if ratios != sorted(set(ratios)):
            raise ValueError("the curve's ratios must ascend")
        if self.recompute_ratio != self.ratio_for(self.target_kl):
            raise ValueError(
                f"recompute_ratio {self.recompute_ratio} is not what the curve gives for target_kl {self.target_kl}: "
                f"{self.ratio_for(self.target_kl)}"
            )
        return self

    def ratio_for(self, target_kl: float) -> float | None:
        """The smallest measured ratio that meets another target with confidence; None where none does."""
        return smallest_ratio(self.curve, target_kl)


def smallest_ratio(curve: Iterable[CurvePoint], target_kl: float) -> float | None:
    """The smallest ratio below 0.6 at which, and at all greater measured ones, the upper bound meets the target.

    Going down from the greatest ratio and stopping at the first that fails keeps the confidence of one test for the
    whole search (fixed-sequence testing), where the best of many tests would pass by luck more often than 1 in 20.
    """
    smallest = None
    for point in sorted(curve, key=lambda point: point.recompute_ratio, reverse=True):
        if point.kl_upper95 > target_kl:
            break
        if point.recompute_ratio < MAX_RATIO:
            smallest = point.recompute_ratio
    return smallest
