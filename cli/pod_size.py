"""What a model's service and engine ask of a pod: the sizes that deploy/chart takes as values."""

from math import ceil
from typing import Any

from kvblend.cli.kv_size import KVSize
from kvblend.core.settings import STORED_SHARE, CodecName

__all__ = ["chart_values"]

GIB = 1 << 30
HOT_SHARE = 0.1
"""Of the passages, those that the CPU tier holds."""
CACHE_TOKENS = 64 * 1024
"""Of all requests at a time, in vLLM's KV cache."""
VLLM_GIB = 6
"""What vLLM takes beside weights and KV cache: torch, compiled models, buffers of a step."""
CATALOG_GIB = 8


def chart_values(
    model: str, size: KVSize, *, num_passages: int, passage_tokens: int, codec: CodecName, tensor_parallel: int = 1
) -> dict[str, Any]:
    """Values of deploy/chart for `num_passages` stored passages, in GiB rounded up.

    The CPU tier holds a tenth of them. vLLM's KV cache has 65,536 tokens; without a GPU it lies in the engine's memory.
    """
    file_bytes = size.file_bytes(passage_tokens, ratio=STORED_SHARE[codec], tensor_parallel=tensor_parallel)
    weights = size.num_parameters * size.dtype_bytes
    disk_gib = _gib(num_passages * file_bytes)
    cpu_gib = _gib(num_passages * file_bytes * HOT_SHARE)
    cache_gib = _gib(size.token_bytes * CACHE_TOKENS)
    models_gib = _gib(2 * weights)  # as they are fetched, and as they are kept
    return {
        "model": model,
        "tiers": {"cpuGiB": cpu_gib, "shmGiB": cpu_gib + 1, "diskGiB": disk_gib},
        "home": {"storageGiB": disk_gib + models_gib + CATALOG_GIB},
        "engine": {
            "memoryGiB": _gib(weights) + cache_gib + VLLM_GIB,
            "kvCacheGiB": cache_gib,
            "storageGiB": models_gib + CATALOG_GIB,
        },
        "settings": {"KVBLEND_CODEC": codec},
    }


def _gib(num_bytes: float) -> int:
    return max(1, ceil(num_bytes / GIB))
