"""How the served model is held to what was promised of it."""

from typing import Literal

from pydantic import BaseModel

from kvblend.core.calibration import EncodeKind

__all__ = [
    "CalibrationState",
    "EngineState",
    "GuardState",
    "Readiness",
]


class CalibrationState(BaseModel, defer_build=True):
    """How the served model is held to a calibration: `uncalibrated` blends at the default ratio, `calibrated` at the
    calibration's, by what passages were encoded behind (None: recomputed in full); `unable` not at all."""

    status: Literal["uncalibrated", "calibrated", "unable"]
    """How the model is held to a calibration."""
    target_kl: float | None = None
    """The mean KL, in nats, that the calibration meets."""
    recompute_ratios: dict[EncodeKind, float | None] | None = None
    """The ratio of each kind of passage; null: recomputed in full."""
    warning: str | None = None
    """Why the model cannot be blended as was asked."""


class GuardState(BaseModel, defer_build=True):
    """What the live guard has found: KL in nats of full prefill to the blend, and the share of tokens and of first ones
    that both hold likeliest, means over the last answers compared; and over those of them that are held to targets,
    beside the means of these. `misses_target` needs ten such.
    """

    num_compared: int
    """Answers compared, of the last ones."""
    mean_kl: float | None
    """Of all of them, in nats a token."""
    agreement: float | None
    """The share of tokens that both hold likeliest."""
    first_agreement: float | None
    """The same of first tokens."""
    num_held: int
    """Answers among them that are held to a target."""
    mean_held_kl: float | None
    """Of these alone."""
    mean_target_kl: float | None
    """The mean of their targets."""
    held_agreement: float | None
    """The share of their tokens that both hold likeliest."""
    held_first_agreement: float | None
    """The same of their first tokens."""
    target_agreement: float | None
    """The share that they are held to."""
    misses_target: bool


class EngineState(BaseModel, defer_build=True):
    """Whether a vLLM server answers, and its control channel, without which nothing is reused."""

    healthy: bool
    """Whether it answers."""
    control: bool
    """Whether its control channel does."""


class Readiness(BaseModel, defer_build=True):
    """What `GET /readyz` answers: `ready` where some vLLM server answers. `calibration`: how the model is held to one,
    where a server says what it serves. `guard`: where it is on."""

    status: Literal["ready", "unavailable"]
    """Whether the service can answer."""
    engines: list[EngineState]
    """Of each vLLM server, in the order of `--engine-url`."""
    calibration: CalibrationState | None = None
    guard: GuardState | None = None
