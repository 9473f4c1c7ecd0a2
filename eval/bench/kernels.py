"""Every kernel against its floor, and whole blends against full prefill, wherever this runs."""

from typing import Any

__all__ = ["kernels_bench"]


def kernels_bench() -> dict[str, Any]:
    """Measure on the GPU if there is one; on CPU the references, at small shapes and without floors.

    Blends on a GPU are those of CUDA graphs; benchmarks/results/blend_gpu.csv has both launches.
    """
    import torch

    from kvblend.blend.benchmark import blend_results, shapes_for
    from kvblend.triton_kernels.benchmark import kernel_results

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    rows = [
        {
            "kernel": result.kernel,
            "shape": result.shape,
            "dtype": result.dtype,
            "ms_p50": result.ms_p50,
            "floor_ms": result.floor_ms,
            "fraction_of_floor": result.fraction_of_floor,
            "max_error": result.max_error,
        }
        for result in kernel_results(device)
    ]
    blends = [
        {
            "model_shape": blend.model_shape,
            "context_tokens": blend.context_tokens,
            "recompute_ratio": blend.recompute_ratio,
            "tier": blend.tier,
            "full_ms_p50": blend.full_ms_p50,
            "blend_ms_p50": blend.blend_ms_p50,
        }
        for shape in shapes_for(device)
        for blend in blend_results(shape, device)
        if blend.launch == ("cuda graph" if on_gpu else "eager")
    ]
    return {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "results": rows, "blend": blends}
