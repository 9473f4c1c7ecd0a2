"""The calibration of the model that is served."""

import asyncio
import contextlib
import logging
import time
from pathlib import Path

from kvblend.api.background import end_task
from kvblend.api.engine.replicas import Replicas
from kvblend.core.calibration import MAX_RATIO, Calibration
from kvblend.core.calibration_file import calibration_version, read_calibration
from kvblend.core.control import EngineInfo
from kvblend.core.errors import EngineUnavailableError
from kvblend.core.rest import CalibrationState

__all__ = ["ServedCalibration"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0


class ServedCalibration:
    """Reads the calibration when an engine answers and when its file changes, and says then what follows from it."""

    def __init__(self, model: str, *, home: Path) -> None:
        self._model, self._home = model, home
        self._fingerprint: str | None = None
        self._version: tuple[int, ...] = ()
        self._calibration: Calibration | None = None
        self._looked_at = 0.0
        self._reading = asyncio.Lock()
        self._first_look: asyncio.Task[None] | None = None

    def start(self, replicas: Replicas) -> None:
        """Read it, and say what follows, as soon as an engine answers."""
        self._first_look = asyncio.create_task(self._look(replicas), name="kvblend calibration")

    async def close(self) -> None:
        await end_task(self._first_look)

    async def of(self, info: EngineInfo) -> Calibration | None:
        """The calibration of this engine's model; None where it has none. A new file is seen within 5 seconds."""
        async with self._reading:
            if self._fingerprint != info.model_fingerprint or time.monotonic() - self._looked_at >= LOOK_EVERY_S:
                await asyncio.to_thread(self._read_changed, info)
            return self._calibration

    def _read_changed(self, info: EngineInfo) -> None:
        fingerprint = info.model_fingerprint
        version = calibration_version(self._model, model_fingerprint=fingerprint, home=self._home)
        if (fingerprint, version) != (self._fingerprint, self._version):
            self._calibration = read_calibration(self._model, model_fingerprint=fingerprint, home=self._home)
            self._fingerprint, self._version = fingerprint, version
            _announce(self._model, _state(self._model, self._calibration), default_ratio=info.default_recompute_ratio)
        self._looked_at = time.monotonic()

    async def _look(self, replicas: Replicas) -> None:
        while True:
            with contextlib.suppress(EngineUnavailableError):
                _, facts = await replicas.choose()
                if facts.info is not None:
                    await self.of(facts.info)
                    return
            await asyncio.sleep(LOOK_EVERY_S)

    async def state(self, info: EngineInfo) -> CalibrationState:
        """What the service says of it."""
        return _state(self._model, await self.of(info))


def _state(model: str, calibration: Calibration | None) -> CalibrationState:
    if calibration is None:
        return CalibrationState(status="uncalibrated")
    ratios = {kind: own.recompute_ratio for kind, own in calibration.kinds.items()}
    if not calibration.is_unable:
        return CalibrationState(status="calibrated", target_kl=calibration.target_kl, recompute_ratios=ratios)
    warning = (
        f"{model} is not blended: no recompute ratio below {MAX_RATIO:g} meets its target KL of "
        f"{calibration.target_kl:g}; every prompt is prefilled in full"
    )
    return CalibrationState(status="unable", target_kl=calibration.target_kl, recompute_ratios=ratios, warning=warning)


def _announce(model: str, state: CalibrationState, *, default_ratio: float) -> None:
    if state.warning:
        logger.warning(state.warning)
    elif state.recompute_ratios is None:
        logger.info(
            "%s is not calibrated: it is blended at the default ratio %g; `kvblend calibrate` measures what it needs",
            model,
            default_ratio,
        )
    else:
        logger.info(
            "%s is blended at its calibrated ratios (%s), for a mean KL of at most %g",
            model,
            ", ".join(f"{kind} {1.0 if ratio is None else ratio:g}" for kind, ratio in state.recompute_ratios.items()),
            state.target_kl,
        )
