"""Blending on real vLLM, by architecture, in stock settings with prefix caching and the hybrid KV manager on.

References: vLLM's own full prefill in the same process; full reuse by its definition (full_reuse.py).
Ours: passages encoded behind another context, moved, blended.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vllm_connector.full_reuse import full_reuse_logprobs

MODELS = ["demo", "llama3rope", "qwen2", "qwen3", "qwen3_yarn", "qwen3moe", "mistral", "mistral_sw", "gemma2", "gemma3"]
SCENARIO = Path(__file__).with_name("scenario.py")
FULL_PREFILL_TOLERANCE = 1e-3
"""Logprobs in fp32."""
FULL_REUSE_TOLERANCE = 2e-3
"""Logprobs in fp32, by another library, with keys rotated twice."""


def run_scenario(model: Path, store: Path, **arguments: Any) -> dict[str, Any]:
    """Run scenario.py in a process of its own: vLLM keeps one engine a process."""
    command = [sys.executable, str(SCENARIO), str(model), str(store), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stderr[-4000:]
    results: dict[str, Any] = json.loads(lines[0].removeprefix("RESULTS "))
    return {**results, "log": done.stdout + done.stderr}


def deviation(ours: dict[str, Any], reference: dict[str, Any]) -> float:
    """Largest difference of the answer tokens' logprobs."""
    largest: float = max(abs(a - b) for a, b in zip(ours["logprobs"], reference["logprobs"], strict=True))
    return largest


def check(results: dict[str, Any], model: Path, *, missed_passages: int = 3) -> None:
    fresh = results["fresh"]
    # ratio 1 is full prefill, by either selector
    for name in ("ratio_1", "all"):
        assert results[name]["tokens"] == fresh["tokens"], name
        assert deviation(results[name], fresh) < FULL_PREFILL_TOLERANCE, name
        assert results[name]["report"]["outcome"] == "blended", results[name]["report"]
    # the negative control: with nothing recomputed the same comparison fails
    assert deviation(results["ratio_0"], fresh) > 10 * FULL_PREFILL_TOLERANCE
    # ratio 0 is full reuse, which the selector `none` gives whatever the ratio
    reference = full_reuse_logprobs(model, **results["prompt"], answer=results["ratio_0"]["tokens"])
    assert deviation(results["ratio_0"], {"logprobs": reference}) < FULL_REUSE_TOLERANCE
    assert deviation(results["ratio_0"], results["none"]) < FULL_PREFILL_TOLERANCE
    # an identical request hits the blend's own blocks; a plain one after it gets what a fresh server gives
    assert results["ratio_15_again"]["report"]["outcome"] == "prefix_hit"
    assert deviation(results["plain_after"], fresh) < FULL_PREFILL_TOLERANCE
    # a malformed order costs a warning
    assert deviation(results["malformed"], fresh) < FULL_PREFILL_TOLERANCE
    assert "is prefilled" in results["log"]
    # another question over the same passages is blended anew
    assert results["other_question"]["report"]["outcome"] == "blended"
    assert deviation(results["other_question"], results["other_fresh"]) < FULL_PREFILL_TOLERANCE
    # lost, truncated and bit-flipped files are recomputed
    assert results["damaged"]["tokens"] == results["damaged_fresh"]["tokens"]
    assert deviation(results["damaged"], results["damaged_fresh"]) < FULL_PREFILL_TOLERANCE
    assert results["damaged"]["report"]["missed_passages"] == missed_passages
    assert "quarantine" in results["log"].lower() or missed_passages < 3
    # several blended and plain requests in one batch
    reports = [request["report"] for request in results["together"]]
    assert [report and report["outcome"] for report in reports] == ["blended", "blended", None]


@pytest.mark.parametrize("name", MODELS)
def test_blend(name: str, demo_model_path: Path, tiny_model_path: Callable[[str], Path], tmp_path: Path) -> None:
    """The demo model and every architecture: see `check`."""
    model = demo_model_path if name == "demo" else tiny_model_path(name)
    results = run_scenario(model, tmp_path)
    assert results["files"] == 5
    check(results, model)


def test_blend_with_tensor_parallelism_across_chunks(
    tiny_model_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks, each with files of its own heads; prompts longer than an engine step's tokens."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    model = tiny_model_path("llama3rope")
    results = run_scenario(
        model,
        tmp_path,
        tensor_parallel_size=2,
        max_num_batched_tokens=64,
        enable_chunked_prefill=True,
    )
    assert results["files"] == 10
    check(results, model)


def test_blend_with_compiled_model(tiny_model_path: Callable[[str], Path], tmp_path: Path) -> None:
    """torch.compile on, as vLLM's default has it."""
    model = tiny_model_path("qwen3")
    check(run_scenario(model, tmp_path, enforce_eager=False), model)


@pytest.mark.parametrize(("name", "gpu_bytes"), [("gemma3", 0), ("demo", 64 << 20)])
def test_blend_in_the_requests_blocks(
    name: str, gpu_bytes: int, demo_model_path: Path, tiny_model_path: Callable[[str], Path], tmp_path: Path
) -> None:
    """The CUDA path, by the kernels' PyTorch references: sliding windows in scratch pages; a GPU tier in CPU memory.

    Of three files that are damaged, the tier still has sound copies of two: only what is deleted is a miss.
    """
    model = demo_model_path if name == "demo" else tiny_model_path(name)
    results = run_scenario(model, tmp_path, paged=gpu_bytes)
    check(results, model, missed_passages=1 if gpu_bytes else 3)
    assert set(results["ratio_1"]["report"]["tiers"]) == {"disk"}
    assert set(results["ratio_15"]["report"]["tiers"]) == {"gpu" if gpu_bytes else "disk"}
