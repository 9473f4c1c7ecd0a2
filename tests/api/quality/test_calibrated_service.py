"""A service holds its model to the calibration beside it, and short prompts to what they cost, on real vLLM."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from kvblend.api.engine.control import ControlClient
from kvblend.core.calibration_file import CALIBRATION_FILE, write_calibration
from kvblend.core.errors import InvalidRequestError
from kvblend.sdk import Client
from tests.api.front import control_address, front, linked_model
from tests.core.calibrations import a_calibration, a_curve
from tests.service import RunningService

CURVE = a_curve({0.0: 0.2, 0.05: 0.1, 0.3: 0.02, 0.55: 0.01})
LAMP = "The lamp of Vik burns seal oil. It was lit by Ola Brand in 1790, and is cleaned on the first of every month. "


class Front(Protocol):
    """From a target KL, or None for no calibration, to a service so calibrated, with a collection `vik`."""

    def __call__(
        self, target_kl: float | None, *, cost_model: bool = False
    ) -> AbstractContextManager[tuple[Client, httpx.Client]]: ...


@pytest.fixture
def fronted(service: RunningService, demo_model_path: Path, embedding_model_path: Path, tmp_path: Path) -> Front:
    async def fingerprint() -> str:
        control = ControlClient(control_address(service))
        try:
            info = await control.info()
        finally:
            await control.close()
        assert info is not None
        return info.model_fingerprint

    @contextmanager
    def run(target_kl: float | None, *, cost_model: bool = False) -> Iterator[tuple[Client, httpx.Client]]:
        model = linked_model(demo_model_path, tmp_path / "model")
        if target_kl is not None:
            calibration = a_calibration(CURVE, target_kl=target_kl, model_fingerprint=asyncio.run(fingerprint()))
            assert write_calibration(calibration, model=str(model), home=tmp_path) == model / CALIBRATION_FILE
        home = tmp_path / "home"
        with (
            front(service, model=model, embedding_model=embedding_model_path, home=home, cost_model=cost_model) as url,
            Client(url) as client,
            httpx.Client(base_url=url, timeout=60) as http,
        ):
            client.create_collection("vik", passage_tokens=64)
            client.wait(client.add_document("vik", LAMP * 4, id="lamp"), timeout_s=120)
            yield client, http

    return run


def test_a_calibrated_model_is_served_at_its_ratio_and_says_so(fronted: Front) -> None:
    with fronted(0.05) as (client, http):
        question = "What does the lamp burn?"
        report = client.query("vik", question, max_tokens=4).report
        assert (report.outcome, report.recompute_ratio, report.calibrated) == ("blended", 0.3, True)
        assert report.selected_tokens == pytest.approx(0.3 * report.reused_tokens, abs=1)
        less = client.query("vik", question, recompute_ratio=0.1, max_tokens=4).report
        assert (less.recompute_ratio, less.calibrated) == (0.1, False)
        loose = client.query("vik", question, target_kl=0.15, max_tokens=4).report
        assert (loose.recompute_ratio, loose.calibrated) == (0.05, True)
        strict = client.query("vik", question, target_kl=0.001, max_tokens=4).report
        assert (strict.outcome, strict.calibrated) == ("prefilled", True)
        assert "the request's target KL of 0.001" in (strict.reason or "")
        assert http.get("/readyz").json()["calibration"] == {
            "status": "calibrated",
            "target_kl": 0.05,
            "recompute_ratios": {"fits": 0.3, "document": 0.3, "neutral": 0.3},
        }
        metrics = http.get("/metrics").text
        for decision, count in (("calibrated", 2.0), ("uncalibrated", 1.0), ("target", 1.0)):
            assert f'kvblend_gate_decisions_total{{decision="{decision}"}} {count}' in metrics


def test_a_model_that_cannot_meet_its_target_is_prefilled(fronted: Front, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="kvblend"), fronted(0.001) as (client, http):
        wait_until(lambda: "is not blended: no recompute ratio below 0.6" in caplog.text)  # said unasked
        report = client.query("vik", "Who lit the lamp?", recompute_ratio=0.3, max_tokens=4).report
        assert report.outcome == "prefilled"
        assert "no recompute ratio below 0.6 meets the model's target KL of 0.001" in (report.reason or "")
        state = http.get("/readyz").json()["calibration"]
        assert state["status"] == "unable"
        assert "is not blended: no recompute ratio below 0.6" in str(state["warning"])
        assert state["warning"] in [record.getMessage() for record in caplog.records]


def test_an_uncalibrated_model_is_served_at_the_default_and_takes_no_target(fronted: Front) -> None:
    with fronted(None) as (client, http):
        report = client.query("vik", "When was it lit?", max_tokens=4).report
        assert (report.outcome, report.recompute_ratio, report.calibrated) == ("blended", 0.15, False)
        assert http.get("/readyz").json()["calibration"] == {"status": "uncalibrated"}
        with pytest.raises(InvalidRequestError, match=r"target_kl 0\.1: the model that is served is not calibrated"):
            client.query("vik", "When was it lit?", target_kl=0.1)
        body = {"prompt": "?", "kvblend": {"documents": ["x"], "recompute_ratio": 0.1, "target_kl": 0.1}}
        answer = http.post("/v1/completions", json=body)
        assert answer.status_code == 400
        assert "give one of recompute_ratio and target_kl" in answer.json()["error"]["message"]


def test_a_prompt_whose_blend_would_take_as_long_is_prefilled(
    fronted: Front, service: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    files_before = kv_files(service)
    with caplog.at_level(logging.INFO, logger="kvblend"), fronted(None, cost_model=True) as (client, http):
        wait_until(lambda: any("costs fitted" in record.getMessage() for record in caplog.records))
        diary = " ".join(f"On day {day} the keeper counted {7 * day} ships and {3 * day} gulls." for day in range(60))
        client.wait(client.add_document("vik", diary, id="diary"), timeout_s=120)
        long = client.query("vik", "What did the keeper count?", recompute_ratio=0.0, max_tokens=4).report
        assert long.context_tokens > 300
        assert long.outcome == "blended"
        left = kv_files(service) - files_before
        assert len(left) <= client.get_collection("vik").num_passages + 1, "what was stored to be timed is deleted"

        body = {"prompt": "Why?", "max_tokens": 2, "kvblend": {"documents": ["Oil."]}}

        def is_declined() -> bool:  # not the first answer, a miss that has the passage encoded
            report = http.post("/v1/completions", json=body).json()["kvblend"]["report"]
            return report["outcome"] == "prefilled" and "blending cannot pay: with" in (report["reason"] or "")

        wait_until(is_declined)
        assert 'kvblend_gate_decisions_total{decision="cost"} 1.0' in http.get("/metrics").text


def kv_files(service: RunningService) -> set[str]:
    return {path.name for root in (service.cpu_path, service.home / "kv") for path in root.rglob("*.kv")}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(0.2)
