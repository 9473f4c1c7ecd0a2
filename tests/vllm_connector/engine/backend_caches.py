"""Attention layers with the caches that vLLM gives each CUDA backend, allocated by vLLM itself, on CPU memory.

Only the last kernel, which writes tokens by slot, is not vLLM's: CUDA's own needs CUDA, and vLLM has no Triton on CPU.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from vllm.v1.attention.backends import flash_attn, triton_attn
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.utils import allocate_kv_cache

try:
    from vllm.v1.core.kv_cache_planning import get_kv_cache_config_from_groups
except ImportError:  # before vLLM 0.33
    from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups

__all__ = ["BACKENDS", "BackendLayer", "allocate_layers"]


def _scatter(keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor, *_: Any) -> None:
    """`reshape_and_cache_flash`: caches are `[num_blocks, block_size, num_kv_heads, head_dim]` of any strides."""
    blocks, tokens = slots // key_cache.shape[1], slots % key_cache.shape[1]
    key_cache[blocks, tokens], value_cache[blocks, tokens] = keys, values


def _flash_attn(impl: Any, layer: Any, keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
    with patch.object(flash_attn, "reshape_and_cache_flash", _scatter, create=True):
        flash_attn.FlashAttentionImpl.do_kv_cache_update(impl, layer, keys, values, cache, slots)


def _triton(impl: Any, layer: Any, keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
    with patch.object(triton_attn, "triton_reshape_and_cache_flash", _scatter):
        triton_attn.TritonAttentionImpl.do_kv_cache_update(impl, layer, keys, values, cache, slots)


def _flashinfer(impl: Any, layer: Any, keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
    """What vllm/v1/attention/backends/flashinfer.py does at lines 2661 to 2672: it needs flashinfer to be imported."""
    key_cache, value_cache = torch.split(cache.transpose(1, 2), impl.head_size, dim=-1)
    _scatter(keys, values, key_cache, value_cache, slots)


Writer = Callable[[Any, Any, Tensor, Tensor, Tensor, Tensor], None]
BACKENDS: dict[str, Writer] = {"FlashAttention": _flash_attn, "Triton": _triton, "FlashInfer": _flashinfer}


class _Impl:
    """What a backend's writer reads of itself."""

    attn_type, kv_cache_dtype, kv_sharing_target_layer_name = "decoder", "auto", None
    _is_per_token_head_quant = _set_kv_ptr_range = False
    sinks = alibi_slopes = logits_soft_cap = None

    def __init__(self, backend: str, head_size: int, soft_cap: float | None) -> None:
        self.head_size, self._write = head_size, BACKENDS[backend]
        self.scale, self.logits_soft_cap = head_size**-0.5, soft_cap

    def do_kv_cache_update(self, layer: Any, keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
        self._write(self, layer, keys, values, cache, slots)


class BackendLayer:
    """An attention layer of vLLM as the connector knows it."""

    _k_scale = _v_scale = None

    def __init__(
        self, backend: str, cache: Tensor, heads: int, dim: int, window: int | None, soft_cap: float | None
    ) -> None:
        self.kv_cache, self.num_kv_heads, self.head_size = cache, heads, dim
        self.sliding_window = window
        self.impl = _Impl(backend, dim, soft_cap)


def allocate_layers(
    backend: str,
    layout: KVCacheLayout,
    windows: Sequence[int | None],
    *,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    num_blocks: int,
    block_size: int = 16,
    kernel_block_size: int | None = None,
    soft_cap: float | None = None,
) -> tuple[dict[str, BackendLayer], KVCacheConfig]:
    """Layers `model.layers.0.attn`, ... with caches full of NaN; a sliding window's layers are a KV group of their own.

    A window's group and the full layers' must have as many layers each: vLLM makes them so.
    """
    groups = []
    for window in dict.fromkeys(windows):
        names = [f"model.layers.{index}.attn" for index, other in enumerate(windows) if other == window]
        shape: dict[str, Any] = {
            "block_size": block_size,
            "num_kv_heads": num_kv_heads,
            "head_size": head_dim,
            "dtype": dtype,
        }
        spec = SlidingWindowSpec(**shape, sliding_window=window) if window is not None else FullAttentionSpec(**shape)
        groups.append(KVCacheGroupSpec(names, spec))
    config = SimpleNamespace(
        attention_config=SimpleNamespace(hisparse_config=None),
        cache_config=SimpleNamespace(
            get_resolved_kv_cache_layout=lambda: layout,
            num_gpu_blocks_override=num_blocks,
            prefix_cache_retention_interval=None,
        ),
    )
    cache_config = get_kv_cache_config_from_groups(config, groups, 1 << 30)
    sizes = [kernel_block_size or block_size] * len(groups)
    caches = allocate_kv_cache(cache_config, torch.device("cpu"), layout, sizes)
    layers = {}
    for name in sorted(caches):
        caches[name].fill_(torch.nan)
        window = windows[int(name.split(".")[2])]
        layers[name] = BackendLayer(backend, caches[name], num_kv_heads, head_dim, window, soft_cap)
    return layers, cache_config
