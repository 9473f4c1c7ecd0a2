"""What calibration measured of one model, and the recompute ratio that follows from it."""

from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from kvblend.core.plan import SelectorName

__all__ = [
    "CALIBRATION_VERSION",
    "ENCODE_KINDS",
    "MAX_RATIO",
    "Calibration",
    "CurvePoint",
    "EncodeKind",
    "KindCalibration",
    "QualityTarget",
    "smallest_ratio",
]

CALIBRATION_VERSION: Literal[2] = 2
MAX_RATIO = 0.6
"""Beyond this ratio a blend saves too little: a model that needs more is served by full prefill."""

EncodeKind = Literal["fits", "document", "neutral", "own"]
"""What a passage was encoded behind, seen from where it stands: just what is in front of it there, the preceding text
of its own document, the service's neutral text, or a text of its collection's own."""
ENCODE_KINDS: tuple[EncodeKind, ...] = ("fits", "document", "neutral")
"""Those that are calibrated: a collection's own text is nobody else's."""

KL = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class QualityTarget(NamedTuple):
    """What answers are held to: a mean KL of at most so many nats, and the likeliest token the same in such a share of
    places."""

    kl: float
    agreement: float


class _Schema(BaseModel, defer_build=True):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CurvePoint(_Schema):
    """What was measured at one ratio, over all questions: the mean KL to full prefill in nats, the one-sided 95% upper
    confidence bound of that mean, and how often the token chosen is the one that full prefill holds likeliest: of all
    tokens, of the answers' first ones, and of whole answers."""

    recompute_ratio: Share
    """At which it was measured."""
    kl: KL
    """The mean, in nats a token."""
    kl_upper95: KL
    """That mean's upper confidence bound."""
    agreement: Share
    """Of all tokens."""
    first_agreement: Share
    """Of first tokens."""
    same_answer: Share
    """Of whole answers."""


class KindCalibration(_Schema):
    """The measured curve of passages of one kind, and the smallest ratio that meets the calibration's targets.

    `recompute_ratio` is None where no ratio below 0.6 meets them.
    """

    recompute_ratio: Annotated[float, Field(ge=0.0, lt=MAX_RATIO)] | None
    curve: Annotated[tuple[CurvePoint, ...], Field(min_length=1)]
    """By ascending ratio."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        ratios = [point.recompute_ratio for point in self.curve]
        if ratios != sorted(set(ratios)):
            raise ValueError("the curve's ratios must ascend")
        return self


class Calibration(_Schema):
    """The measured curves of one model, by what passages were encoded behind, and the smallest ratio of each kind that
    meets `target_kl` with confidence and agrees with full prefill in `target_agreement` of the tokens and first tokens.

    Passage tokens are the mean of the passages used; `created_at` is in seconds since the epoch.
    """

    version: Literal[2] = CALIBRATION_VERSION
    """Of the file's form."""
    model: str
    """As it was named to `kvblend calibrate`."""
    model_fingerprint: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Of its configuration and weights: a calibration holds for no other."""
    dtype: str
    """That was measured in."""
    selector: SelectorName
    """That chose tokens."""
    target_kl: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    target_agreement: Share
    kinds: dict[EncodeKind, KindCalibration]
    """By what passages were encoded behind."""
    num_questions: Annotated[int, Field(ge=1)]
    """That were asked."""
    num_passages: Annotated[int, Field(ge=1)]
    """In each prompt."""
    passage_tokens: Annotated[float, Field(gt=0.0)]
    """The mean of those used."""
    created_at: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        if set(self.kinds) != set(ENCODE_KINDS):
            raise ValueError(f"the kinds are {sorted(self.kinds)}; they must be {sorted(ENCODE_KINDS)}")
        for kind, own in self.kinds.items():
            if own.recompute_ratio != self.ratio_for(kind, self.target_kl):
                raise ValueError(
                    f"recompute_ratio {own.recompute_ratio} is not what the curve of {kind!r} gives for target_kl "
                    f"{self.target_kl}: {self.ratio_for(kind, self.target_kl)}"
                )
        return self

    def ratio_for(self, kind: EncodeKind, target_kl: float) -> float | None:
        """The smallest measured ratio of a kind that meets another target with confidence; None where none does.

        A collection's own text counts as neutral.
        """
        curve = self.kinds["neutral" if kind == "own" else kind].curve
        return smallest_ratio(curve, target_kl, self.target_agreement)

    @property
    def is_unable(self) -> bool:
        """Whether no kind meets the targets: the model is served by full prefill."""
        return all(own.recompute_ratio is None for own in self.kinds.values())


def smallest_ratio(curve: Iterable[CurvePoint], target_kl: float, target_agreement: float = 0.0) -> float | None:
    """The smallest ratio below 0.6 at which, and at all greater measured ones, the targets are met.

    Going down from the greatest ratio and stopping at the first that fails keeps the confidence of one test for the
    whole search (fixed-sequence testing), where the best of many tests would pass by luck more often than 1 in 20.
    """
    smallest = None
    for point in sorted(curve, key=lambda point: point.recompute_ratio, reverse=True):
        if point.kl_upper95 > target_kl or min(point.agreement, point.first_agreement) < target_agreement:
            break
        if point.recompute_ratio < MAX_RATIO:
            smallest = point.recompute_ratio
    return smallest
