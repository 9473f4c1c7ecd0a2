"""The service follows the calibration beside its model."""

import asyncio
import logging
from pathlib import Path

import pytest

from kvblend.api.quality import served_calibration
from kvblend.api.quality.served_calibration import ServedCalibration
from kvblend.core.calibration_file import CALIBRATION_FILE, write_calibration
from kvblend.core.control import EngineInfo
from tests.core.calibrations import FINGERPRINT, a_calibration, a_curve

INFO = EngineInfo(
    model="model",
    model_fingerprint=FINGERPRINT,
    dtype="float32",
    block_size=16,
    max_model_len=1024,
    head_ranges=[(0, 3)],
    token_bytes=1024,
    default_recompute_ratio=0.15,
)
CURVE = a_curve({0.0: 0.2, 0.15: 0.04, 0.3: 0.02})


def test_a_new_calibration_is_taken_up_while_the_service_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(served_calibration, "LOOK_EVERY_S", 0.0)
    caplog.set_level(logging.INFO, logger="kvblend")

    async def follow() -> None:
        served = ServedCalibration(str(tmp_path), home=tmp_path / "home")
        assert await served.of(INFO) is None
        for target_kl, ratio in ((0.05, 0.15), (0.03, 0.3), (0.001, None)):
            write_calibration(a_calibration(CURVE, target_kl=target_kl), model=str(tmp_path), home=tmp_path / "home")
            for _ in range(2):
                found = await served.of(INFO)
                assert found is not None
                assert (found.target_kl, found.kinds["document"].recompute_ratio) == (target_kl, ratio)
        (tmp_path / CALIBRATION_FILE).unlink()
        assert (await served.state(INFO)).status == "uncalibrated"

    asyncio.run(follow())
    assert len(caplog.records) == 5, "each is said once"


def test_the_file_is_looked_at_now_and_then_only(tmp_path: Path) -> None:
    async def follow() -> None:
        served = ServedCalibration(str(tmp_path), home=tmp_path)
        assert await served.of(INFO) is None
        write_calibration(a_calibration(CURVE, target_kl=0.05), model=str(tmp_path), home=tmp_path)
        assert await served.of(INFO) is None
        assert await served.of(INFO.model_copy(update={"model_fingerprint": "cd" * 32})) is None
        assert await served.of(INFO) is not None, "another engine is another reason to look"

    asyncio.run(follow())
