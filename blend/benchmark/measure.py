"""Whole blends of one model at one context length, from every tier, beside full prefill in the same run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from kvblend.blend.benchmark.blend import Blend
from kvblend.blend.benchmark.checks import check_tier, deviation
from kvblend.blend.benchmark.flash import full_prefill
from kvblend.blend.benchmark.tiers import DeviceTier, PinnedTier
from kvblend.blend.benchmark.timing import Times, times
from kvblend.blend.benchmark.workload import Workload
from kvblend.blend.hf import HuggingFaceModel
from kvblend.triton_kernels import Codec
from kvblend.triton_kernels.benchmark.graph import captured

__all__ = ["BlendResult", "measure"]

TIERS = {"gpu": 0.0, "pinned bf16": 0.0, "pinned int8": 0.02}
"""Where passage KV waits, and how far what is loaded from there may be from what was encoded."""
INT8_GROUP = 64
STORE_NEEDS = ("xxhash", "pydantic", "pydantic_settings")
"""A lent machine may have torch, triton and transformers alone."""
SHARED_MEMORY = Path("/dev/shm")
SERVED_BOUND = 0.1
"""Of a blend from passages as they are against one from int8; wrong KV is off by over half."""
GRAPH_BOUND = 0.1
"""Other matrix products in a graph move the logits of a deep model in bf16 by some percent, wrong KV by over half."""


@dataclass(frozen=True)
class BlendResult:
    """Time to first token of one blend and of full prefill, in ms.

    `launch`: "eager", where the host prepares the request and asks for each kernel in the time that is measured;
    "cuda graph", where it did so before, for the blend and for full prefill alike; "as served", from files in shared
    memory and by the stager, as the connector does it, to the GPU tier where there is one.
    """

    model_shape: str
    context_tokens: int
    recompute_ratio: float
    tier: str
    launch: str
    full_ms_p20: float
    full_ms_p50: float
    full_ms_p80: float
    blend_ms_p20: float
    blend_ms_p50: float
    blend_ms_p80: float

    @property
    def speedup(self) -> float:
        return self.full_ms_p50 / self.blend_ms_p50


def measure(
    model: HuggingFaceModel, model_shape: str, *, num_context: int, passage_tokens: int, recompute_ratio: float
) -> Iterator[BlendResult]:
    """Raises AssertionError where a tier gives other KV, or a CUDA graph other logits than what was captured."""
    workload = Workload(model, num_context, passage_tokens=passage_tokens)
    full = partial(full_prefill, model, workload.token_ids, workload.positions)
    on_gpu = model.device.type == "cuda"

    def result(tier: str, launch: str, of_full: Times, of_blend: Times) -> BlendResult:
        return BlendResult(model_shape, num_context, recompute_ratio, tier, launch, *of_full, *of_blend)

    of_full = {"eager": times(full, model.device)}
    if on_gpu:
        of_full["cuda graph"] = times(captured(full), model.device)
    for name, bound in TIERS.items():
        blend = Blend(workload, _tier(name, workload), recompute_ratio=recompute_ratio)
        check_tier(blend, workload, bound=bound)

        def request(blend: Blend = blend) -> None:
            blend.prepare()
            blend.run()

        yield result(name, "eager", of_full["eager"], times(request, model.device))
        if on_gpu:
            yield result(name, "cuda graph", of_full["cuda graph"], _graph_times(blend, model.device))
    missing = [name for name in STORE_NEEDS if find_spec(name) is None]
    if missing:
        print(f"{model_shape} is not measured as served: the store needs {', '.join(missing)}", flush=True)
        return
    yield from _served(
        blend, workload, recompute_ratio, lambda name, ms: result(name, "as served", of_full["eager"], ms)
    )


def _served(
    blend: Blend, workload: Workload, recompute_ratio: float, result: Callable[[str, Times], BlendResult]
) -> Iterator[BlendResult]:
    from kvblend.blend.benchmark.served import ServedBlend

    blend.prepare()
    expected = blend.run()
    kv_bytes = sum(passage.payload.nbytes for passage in workload.passages)
    for name, gpu_bytes in (("store cpu", 0), ("store gpu", 2 * kv_bytes)):
        with (
            TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as folder,
            ServedBlend(workload, Path(folder), recompute_ratio=recompute_ratio, gpu_bytes=gpu_bytes) as served,
        ):
            error = deviation(served.run(), expected)
            assert error <= SERVED_BOUND, f"a blend from {name} is off by {error}"
            yield result(name, times(served.run, workload.model.device))


def _graph_times(blend: Blend, device: torch.device) -> Times:
    blend.prepare()
    expected, runs = blend.run(), list[Tensor]()
    replay = captured(lambda: runs.append(blend.run()))
    replay()
    error = deviation(runs[-1], expected)
    assert error <= GRAPH_BOUND, f"a CUDA graph's logits are off by {error}"
    return times(replay, device)


def _tier(name: str, workload: Workload) -> DeviceTier | PinnedTier:
    if name == "gpu":
        return DeviceTier(workload.passages)
    group_size = min(INT8_GROUP, workload.model.head_dim // 2)
    return PinnedTier(workload.passages, codec=Codec("int8", group_size) if name.endswith("int8") else Codec())
