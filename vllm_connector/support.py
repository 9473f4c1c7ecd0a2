"""What kvblend does not blend is refused at start, each with one sentence."""

from collections.abc import Iterable, Mapping
from typing import Any

from kvblend.core.errors import UnsupportedModelError

__all__ = ["check_engine", "check_layers"]


def check_engine(vllm_config: Any) -> None:
    """Raise UnsupportedModelError for a setting, or a model by its configuration, that kvblend would blend wrongly."""
    parallel, model, cache = vllm_config.parallel_config, vllm_config.model_config, vllm_config.cache_config
    if parallel.pipeline_parallel_size > 1:
        raise UnsupportedModelError(
            f"kvblend does not work with pipeline parallelism: pipeline_parallel_size is "
            f"{parallel.pipeline_parallel_size} and must be 1"
        )
    if parallel.data_parallel_size > 1 and model.is_moe:
        raise UnsupportedModelError(
            f"kvblend does not work with data parallel experts, whose ranks run every forward together: "
            f"data_parallel_size is {parallel.data_parallel_size} and must be 1"
        )
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name) > 1:
            raise UnsupportedModelError(
                f"kvblend does not work with context parallelism: {name} is {getattr(parallel, name)} and must be 1"
            )
    if vllm_config.lora_config is not None:
        raise UnsupportedModelError("kvblend does not work with LoRA adapters: leave enable_lora out")
    if vllm_config.speculative_config is not None:
        raise UnsupportedModelError("kvblend does not work with speculative decoding: leave speculative_config out")
    if cache.cache_dtype not in ("auto", "bfloat16", "float16", "float32"):
        raise UnsupportedModelError(
            f"kvblend does not work with a quantized KV cache: kv_cache_dtype is {cache.cache_dtype!r}, not 'auto'"
        )
    if model.use_mla:
        raise UnsupportedModelError("kvblend does not work with multi-head latent attention (MLA)")
    if model.is_hybrid or model.is_attention_free:
        raise UnsupportedModelError("kvblend does not work with state-space layers: every layer must be attention")
    if model.uses_alibi:
        raise UnsupportedModelError("kvblend does not work with ALiBi: the model has no rotary attention")
    if model.uses_mrope:
        raise UnsupportedModelError("kvblend does not work with multimodal rotary positions (M-RoPE)")


def check_layers(kv_caches: Iterable[str], context: Mapping[str, Any], kv_cache_config: Any) -> None:
    """Raise UnsupportedModelError for a layer whose KV kvblend cannot read and move."""
    shapes = set()
    for name in kv_caches:
        layer = context[name]
        if not hasattr(layer.impl, "do_kv_cache_update"):
            raise UnsupportedModelError(
                f"kvblend does not work with the attention of layer {name}: {type(layer).__name__}"
            )
        if getattr(layer, "kv_sharing_target_layer_name", None):
            raise UnsupportedModelError(f"kvblend does not work with layers that share KV: {name}")
        if getattr(layer.impl, "sinks", None) is not None:
            raise UnsupportedModelError(f"kvblend does not work with attention sinks in the weights: {name}")
        if getattr(layer.impl, "alibi_slopes", None) is not None:
            raise UnsupportedModelError(f"kvblend does not work with ALiBi: {name} has no rotary attention")
        shapes.add((layer.num_kv_heads, layer.head_size))
    if len(shapes) != 1:
        raise UnsupportedModelError(f"kvblend needs layers of one KV shape, and this model has {sorted(shapes)}")
    for group in kv_cache_config.kv_cache_groups:
        kind = type(group.kv_cache_spec).__name__
        if "Chunked" in kind or "Mamba" in kind or "Cross" in kind:
            raise UnsupportedModelError(f"kvblend does not work with layers of kind {kind}")
