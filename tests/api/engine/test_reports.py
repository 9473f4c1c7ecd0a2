"""Where the service has a blend's report from: the answer itself, or a control channel."""

from typing import Any

import httpx
import pytest

from kvblend.core.plan import REPORT
from tests.api.scripted_service import ScriptedService

BODY = {
    "messages": [{"role": "user", "content": "?"}],
    "max_tokens": 4,
    "kvblend": {"documents": ["The bridge of Vik is of basalt."]},
}
CAME = {"outcome": "blended", "reused_tokens": 42}


@pytest.mark.parametrize(
    ("told", "reused"),
    [({REPORT: CAME}, 42), (None, 0), ({"of": "another connector"}, 0), ({REPORT: {**CAME, "of_a_later": 1}}, 0)],
)
def test_what_a_whole_answer_brings_goes_before_the_control_channel(
    scripted: ScriptedService, told: dict[str, Any] | None, reused: int
) -> None:
    scripted.engine.told = told
    answer = httpx.post(f"{scripted.url}/v1/chat/completions", json=BODY, timeout=60).json()
    report = answer["kvblend"]["report"]
    assert (report["outcome"], report["reused_tokens"]) == ("blended", reused)
    assert report["ttft_ms"] == pytest.approx(7.0)
    assert not answer.get("kv_transfer_params")
