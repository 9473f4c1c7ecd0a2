"""The whole-blend benchmark where there is no GPU: its checks, its baseline, and that it refuses what is wrong."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from kvblend.blend.benchmark import blend_results, shapes_for
from kvblend.blend.benchmark.blend import Blend
from kvblend.blend.benchmark.checks import check_against_full_prefill, check_tier
from kvblend.blend.benchmark.flash import full_prefill
from kvblend.blend.benchmark.tiers import DeviceTier, PinnedTier
from kvblend.blend.benchmark.workload import Workload
from kvblend.triton_kernels import Codec

CPU = torch.device("cpu")


def test_rows() -> None:
    (shape,) = shapes_for(CPU)
    rows = list(blend_results(shape, CPU))
    assert [(row.context_tokens, row.tier, row.launch) for row in rows] == [
        *((128, tier, "eager") for tier in ("gpu", "pinned bf16", "pinned int8")),
        *((128, tier, "as served") for tier in ("store cpu", "store gpu")),
    ]
    assert all(0 < row.blend_ms_p20 <= row.blend_ms_p50 <= row.blend_ms_p80 and row.speedup > 0 for row in rows)


def test_the_baseline_is_the_models_own_prefill() -> None:
    """Reference: transformers' own forward of a model of the same weights. Ours: flash attention from outside."""
    (shape,) = shapes_for(CPU)
    model = shape.build(CPU)
    torch.manual_seed(0)
    own = AutoModelForCausalLM.from_config(LlamaConfig(**shape.config), dtype=shape.dtype, attn_implementation="sdpa")
    tokens = torch.arange(3, 70)
    with torch.no_grad():
        expected = own(tokens[None], logits_to_keep=1).logits[0]
    torch.testing.assert_close(full_prefill(model, tokens, torch.arange(67)), expected, rtol=1e-4, atol=1e-4)


def test_a_wrong_blend_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    (shape,) = shapes_for(CPU)
    model = shape.build(CPU)
    workload = Workload(model, 64, passage_tokens=32)
    blend = Blend(workload, PinnedTier(workload.passages, codec=Codec("int4", 4)), recompute_ratio=0.1)
    with pytest.raises(AssertionError, match="a tier gives KV that is off"):
        check_tier(blend, workload, bound=1e-3)
    check_tier(Blend(workload, DeviceTier(workload.passages), recompute_ratio=0.1), workload, bound=0.0)

    def forgets_repair(blend: Blend) -> Tensor:
        blend._ratio = 0.0
        blend.prepare()
        return run(blend)

    run = Blend.run
    monkeypatch.setattr(Blend, "run", forgets_repair)
    with pytest.raises(AssertionError, match=r"ratio 1\.0 is off"):
        check_against_full_prefill(model, num_context=64, passage_tokens=32)
