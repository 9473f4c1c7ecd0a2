"""What happens to blended requests between engine steps, on real vLLM driven step by step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.preloaded import run_script
from tests.tolerances import Tolerances

SCRIPT = Path(__file__).with_name("stepping_scenario.py")
NOTHING = {"blocks": 0, "tracked": 0, "jobs": 0, "requests": 0}


def run_stepping(model: Path, store: Path, dtype: str, part: str) -> dict[str, Any]:
    done = run_script(SCRIPT, model, store, dtype, part, timeout_s=400)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stderr[-4000:]
    results: dict[str, Any] = json.loads(lines[0].removeprefix("RESULTS "))
    return results


@pytest.fixture(scope="module")
def lifecycle(
    tiny_model_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, dtype: str
) -> dict[str, Any]:
    return run_stepping(tiny_model_path("llama3rope"), tmp_path_factory.mktemp("store"), dtype, "lifecycle")


def deviation(ours: dict[str, Any], reference: dict[str, Any]) -> float:
    """Largest difference of the answers' logprobs; both took the same tokens."""
    assert ours["tokens"] == reference["tokens"]
    largest: float = max(abs(a - b) for a, b in zip(ours["logprobs"], reference["logprobs"], strict=True))
    return largest


def test_aborted_requests_leak_nothing(lifecycle: dict[str, Any]) -> None:
    """One aborted amid its repair, one before it began."""
    assert lifecycle["loading"] == 1
    assert lifecycle["after_abort"] == NOTHING


def test_blocks_that_another_request_fills_in_the_same_step(lifecycle: dict[str, Any], tolerances: Tolerances) -> None:
    """Reference: the same prompt alone. Ours: at ratio 1 beside a plain request that shares its first blocks."""
    ours, reference = lifecycle["same_step"]
    assert deviation(ours, reference) < tolerances.logprob


def test_a_local_hit_is_kept(lifecycle: dict[str, Any], tolerances: Tolerances) -> None:
    """Two passages lie in vLLM's own cache, exact; only what is behind them is loaded and repaired."""
    hit = lifecycle["local_hit"]
    report = hit["ours"]["report"]
    assert report["exact_tokens"] == hit["half"] // 32 * 32
    assert report["exact_tokens"] + report["recomputed_tokens"] == report["context_tokens"]
    assert deviation(hit["ours"], hit["fresh"]) < tolerances.logprob


def test_a_wrong_kv_would_show(lifecycle: dict[str, Any], tolerances: Tolerances) -> None:
    """The negative control of all the others' comparisons. Ours: full reuse."""
    control = lifecycle["control"]
    assert deviation(control["ours"], control["fresh"]) > tolerances.control * tolerances.logprob


def test_a_blend_that_fails_is_prefilled(lifecycle: dict[str, Any], tolerances: Tolerances) -> None:
    """Reference: the same prompt plain. Ours: the repair's forward raises."""
    failed = lifecycle["failed"]
    assert failed["ours"]["report"]["outcome"] == "prefilled"
    assert failed["ours"]["report"]["reason"] == "the blend failed: out of memory"
    assert deviation(failed["ours"], failed["fresh"]) < tolerances.logprob


def test_preempted_requests_end_as_they_do_alone(lifecycle: dict[str, Any], tolerances: Tolerances) -> None:
    """Reference: each prompt alone, by full prefill. Ours: at ratio 1, with too few blocks for all."""
    assert lifecycle["num_preempted"] >= 1
    assert all(deviation(ours, reference) < tolerances.logprob for ours, reference in lifecycle["preempted"])
    assert lifecycle["after_preemption"] == NOTHING


def test_a_burst_does_not_stop_a_decode(demo_model_path: Path, tmp_path: Path, dtype: str) -> None:
    """Sixteen blended requests at once: every step gives the decode its token, and puts no more of the blends through
    the model than a step may repair and one question. The negative control: without the bound a step does more."""
    burst = run_stepping(demo_model_path, tmp_path, dtype, "burst")
    bounded, unbounded = burst["bounded"], burst["unbounded"]
    most = burst["bound"] + burst["probe"]
    for each in (bounded, unbounded):
        assert each["outcomes"] == ["blended"], burst
        assert set(each["decoded"]) == {1}, burst
    assert burst["bound"] <= max(bounded["tokens"]) <= most, burst
    assert max(unbounded["tokens"]) > 2 * most, burst
