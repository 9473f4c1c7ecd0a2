"""Whatever goes wrong in the connector, the engine lives, every request is answered, and nothing is held."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.preloaded import run_script
from tests.tolerances import Tolerances
from tests.vllm_connector.test_stepping import deviation

SCRIPT = Path(__file__).with_name("fault_scenario.py")
NOTHING = {"blocks": 0, "tracked": 0, "jobs": 0, "requests": 0}
PREFILLED = "prefilled"
STRUCK = {
    "step": PREFILLED,
    "blend: cannot be made": PREFILLED,
    "reserve: no memory": PREFILLED,
    "reserve: waits": "blended",
    "context: no memory": PREFILLED,
    "staging: the store fails": PREFILLED,
    "staging: a file is gone": "blended",
    "staging: a load fails": PREFILLED,
    "settle": PREFILLED,
    "select": PREFILLED,
    "pass: no memory for its tables": PREFILLED,
    "pass: a layer": PREFILLED,
    "pass: a layer, when it has several": "blended",
    "finish": PREFILLED,
}
"""The struck request's outcome."""
ALONE = ("settle", "select", "finish")
"""Faults of one request: the other is blended."""


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.extended)], ids=["one rank", "two ranks"])
def faults(
    request: pytest.FixtureRequest,
    tiny_model_path: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
) -> dict[str, Any]:
    model, store = tiny_model_path("llama3rope"), tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(str(rank) for rank in range(request.param)))
        done = run_script(SCRIPT, model, store, dtype, request.param, timeout_s=500)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stderr[-6000:]
    results: dict[str, Any] = json.loads(lines[0].removeprefix("RESULTS "))
    return results


def test_blends(faults: dict[str, Any], tolerances: Tolerances) -> None:
    """Reference: each prompt alone, by full prefill. Ours: at ratio 1, or prefilled, or beside these."""
    for fault, result in faults["blends"].items():
        assert result["held"] == NOTHING, fault
        for name, answered in result["requests"].items():
            assert deviation(answered["ours"], answered["fresh"]) < tolerances.logprob, (fault, name)


def test_outcomes(faults: dict[str, Any]) -> None:
    """Who is struck says why; who is not is blended."""
    for fault, outcome in STRUCK.items():
        reports = {name: own["ours"]["report"] for name, own in faults["blends"][fault]["requests"].items()}
        assert reports["struck"]["outcome"] == outcome, (fault, reports)
        if outcome == PREFILLED:
            assert "failed" in reports["struck"]["reason"], (fault, reports)
        if fault in ALONE or outcome == "blended":
            assert reports["blended"]["outcome"] == "blended", (fault, reports)
        assert reports["decode"] is None


def test_encodes(faults: dict[str, Any], tolerances: Tolerances) -> None:
    """The request is answered, its passage is missed, and encoded again it is there."""
    for fault, result in faults["encodes"].items():
        assert result["held"] == NOTHING, fault
        struck = result["requests"]["struck"]
        assert deviation(struck["ours"], struck["fresh"]) < tolerances.logprob, fault
        assert result["missed"]["outcome"] == PREFILLED, (fault, result["missed"])
        assert result["kept"]["outcome"] == "blended" and result["kept"]["missed_passages"] == 0, fault
