"""What vLLM does with the blocks of a KV cache group."""

from typing import Any

from vllm.v1.kv_cache_interface import FullAttentionSpec, UniformTypeKVCacheSpecs

__all__ = ["keeps_blocks", "layer_spec"]


def keeps_blocks(spec: Any) -> bool:
    """Whether a request of a group of this KV cache spec has all its blocks to its end.

    A sliding window's layers give back the blocks behind the window, and hold the null block in their places.
    """
    kinds = spec.kv_cache_specs.values() if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]
    return all(isinstance(kind, FullAttentionSpec) for kind in kinds)


def layer_spec(spec: Any) -> Any:
    """What a KV cache spec says of one of its layers: kvblend works with layers of one KV shape alone."""
    return next(iter(spec.kv_cache_specs.values())) if isinstance(spec, UniformTypeKVCacheSpecs) else spec
