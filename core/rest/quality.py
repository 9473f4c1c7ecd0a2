"""How the served model is held to what was promised of it."""

from typing import Literal

from pydantic import BaseModel

from kvblend.core.calibration import EncodeKind

__all__ = [
    "CalibrationState",
    "GuardState",
]


class CalibrationState(BaseModel):
    """How the served model is held to a calibration: `uncalibrated` blends at the default ratio, `calibrated` at the
    calibration's, by what passages were encoded behind (None: recomputed in full); `unable` not at all."""

    status: Literal["uncalibrated", "calibrated", "unable"]
    target_kl: float | None = None
    recompute_ratios: dict[EncodeKind, float | None] | None = None
    warning: str | None = None


class GuardState(BaseModel):
    """What the live guard has found: KL in nats of full prefill to the blend, and the share of tokens and of first ones
    that both hold likeliest, means over the last answers compared; and over those of them that are held to targets,
    beside the means of these. `misses_target` needs ten such.
    """

    num_compared: int
    mean_kl: float | None
    agreement: float | None
    first_agreement: float | None
    num_held: int
    mean_held_kl: float | None
    mean_target_kl: float | None
    held_agreement: float | None
    held_first_agreement: float | None
    target_agreement: float | None
    misses_target: bool
