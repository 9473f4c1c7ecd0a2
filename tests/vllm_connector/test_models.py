"""Blending on real vLLM, by architecture, in stock settings with prefix caching and the hybrid KV manager on.

References: vLLM's own full prefill in the same process; full reuse by its definition (full_reuse.py).
Ours: passages encoded behind another context, moved, blended.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kvblend.blend.hf import HuggingFaceModel
from kvblend.eval.quality.divergence import mean_kl
from tests.preloaded import run_script
from tests.tolerances import TOLERANCES
from tests.vllm_connector.full_reuse import full_reuse_logprobs

MORE_MODELS = ["demo", "llama3rope", "qwen2", "qwen3", "qwen3_yarn", "mistral", "mistral_sw", "gemma2"]
MODELS = [
    *("qwen3moe", "gemma3"),
    *(pytest.param(name, marks=pytest.mark.extended) for name in MORE_MODELS),
]
SCENARIO = Path(__file__).with_name("scenario.py")
Check = Callable[..., dict[str, Any]]


def run_scenario(model: Path, folder: Path, **arguments: Any) -> dict[str, Any]:
    """Run scenario.py in a process of its own: vLLM keeps one engine a process."""
    output = folder / "results.pt"
    done = run_script(SCENARIO, model, folder / "store", output, json.dumps(arguments), timeout_s=300)
    assert output.exists(), done.stderr[-4000:]
    return {**torch.load(output), "log": done.stdout + done.stderr}


def deviation(ours: dict[str, Any], reference: dict[str, Any]) -> float:
    """Largest difference of the answer tokens' log-probabilities; both took the same tokens."""
    assert ours["tokens"] == reference["tokens"]
    both = torch.stack((ours["logprobs"], reference["logprobs"]))
    chosen = both.gather(2, torch.tensor([[ours["tokens"]] * 2]).view(2, -1, 1))
    return float((chosen[0] - chosen[1]).abs().max())


@pytest.fixture
def check(demo_model_path: Path, tiny_model_path: Callable[[str], Path], tmp_path: Path, dtype: str) -> Check:
    """Runs the scenario on a model by its name, and holds what came out to all that is promised."""

    def run(name: str, *, missed_passages: int = 3, dtype: str = dtype, **arguments: Any) -> dict[str, Any]:
        model = demo_model_path if name == "demo" else tiny_model_path(name)
        results = run_scenario(model, tmp_path, dtype=dtype, **arguments)
        tolerances = TOLERANCES[dtype]
        full_prefill = tolerances.demo if name == "demo" else tolerances.full_prefill
        full_reuse = tolerances.demo if name == "demo" else tolerances.full_reuse

        def divergence(ours: str, reference: str) -> float:
            return mean_kl(results[reference]["logprobs"], results[ours]["logprobs"])

        def hold_to_full_prefill(ours: str, reference: str = "fresh") -> None:
            assert divergence(ours, reference) < full_prefill, ours
            assert deviation(results[ours], results[reference]) < tolerances.logprob, ours

        # ratio 1 is full prefill, by either selector
        for selector in ("ratio_1", "all"):
            hold_to_full_prefill(selector)
            assert results[selector]["report"]["outcome"] == "blended", results[selector]["report"]
        # the negative control: with nothing recomputed the same comparison fails
        assert divergence("ratio_0", "fresh") > tolerances.control * full_prefill
        # ratio 0 is full reuse, and full prefill is not; the selector `none` gives it whatever the ratio
        answer = results["fresh"]["tokens"]
        exact = full_reuse_logprobs(model, **results["prompt"], answer=answer, dtype=getattr(torch, dtype))
        assert mean_kl(exact, results["ratio_0"]["logprobs"]) < full_reuse
        assert mean_kl(exact, results["fresh"]["logprobs"]) > tolerances.control * full_reuse
        assert divergence("ratio_0", "none") < full_prefill
        # counted FLOPs: full prefill's by Hugging Face's model, and a part of them
        counted = HuggingFaceModel.load(model).flops.full_prefill(torch.arange(results["prompt_tokens"]))
        flops = {ratio: results[ratio]["report"]["flops"] for ratio in ("ratio_0", "ratio_15", "ratio_1")}
        assert {own["full_prefill"] for own in flops.values()} == {counted}
        assert flops["ratio_0"]["computed"] < flops["ratio_15"]["computed"] < 0.5 * counted
        # an identical request hits the blend's own blocks; a plain one after it gets what a fresh server gives
        assert results["ratio_15_again"]["report"]["outcome"] == "prefix_hit"
        hold_to_full_prefill("plain_after")
        # a malformed order costs a warning
        hold_to_full_prefill("malformed")
        assert "is prefilled" in results["log"]
        # another question over the same passages is blended anew
        assert results["other_question"]["report"]["outcome"] == "blended"
        hold_to_full_prefill("other_question", "other_fresh")
        # lost, truncated and bit-flipped files are recomputed
        hold_to_full_prefill("damaged", "damaged_fresh")
        assert results["damaged"]["report"]["missed_passages"] == missed_passages
        # passages cut out of one pass over the document stand in it as they were: nothing is to be recomputed
        hold_to_full_prefill("document")
        assert all(passage["exact"] for passage in results["document"]["report"]["passages"])
        assert "quarantine" in results["log"].lower() or missed_passages < 3
        # several blended and plain requests in one batch
        assert [report and report["outcome"] for report in results["together"]] == ["blended", "blended", None]
        return results

    return run


@pytest.mark.parametrize("name", MODELS)
def test_blend(name: str, check: Check) -> None:
    """Every architecture, and beside it the demo model: see `check`."""
    assert check(name)["files"] == 5


def test_blend_with_tensor_parallelism_across_chunks(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, each with files of its own heads; prompts longer than an engine step's tokens."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    results = check("llama3rope", tensor_parallel_size=2, max_num_batched_tokens=64, enable_chunked_prefill=True)
    assert results["files"] == 10


@pytest.mark.extended
def test_blend_with_compiled_model(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile on, as vLLM's default has it."""
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "0")
    check("qwen3", enforce_eager=False)


@pytest.mark.parametrize(
    ("name", "gpu_bytes"),
    [("gemma3", 0), ("llama3rope", 64 << 20), pytest.param("demo", 64 << 20, marks=pytest.mark.extended)],
)
def test_blend_in_the_requests_blocks(name: str, gpu_bytes: int, check: Check) -> None:
    """The CUDA path, by the kernels' PyTorch references: sliding windows in scratch pages; a GPU tier in CPU memory.

    Of three files that are damaged, the tier still has sound copies of two: only what is deleted is a miss. In fp32
    always: where a CPU has AMX, vLLM packs bf16 keys for its matrix instructions, an order that no GPU has.
    `test_backend_blends.py` has CUDA's own layouts in either dtype.
    """
    results = check(name, dtype="float32", paged=gpu_bytes, missed_passages=1 if gpu_bytes else 3)
    assert set(results["ratio_1"]["report"]["tiers"]) == {"disk"}
    assert set(results["ratio_15"]["report"]["tiers"]) == {"gpu" if gpu_bytes else "disk"}
