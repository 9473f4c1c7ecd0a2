"""What a token costs in vLLM's loaded model."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import LinearBase, QKVParallelLinear

from kvblend.blend import ModelFlops

__all__ = ["model_flops"]


def model_flops(
    model: nn.Module, layer_names: Sequence[str], windows: Sequence[int | None], model_config: Any
) -> ModelFlops:
    """Read off the sizes of its linear layers, all ranks together, whatever their weights are packed in.

    `layer_names`: each layer's attention, by which its other modules are found; `windows`: each one's sliding window.
    """
    ranks = get_tensor_model_parallel_world_size()
    modules = dict(model.named_modules())
    qkv, rest = 0, list[int]()
    for name in layer_names:
        prefix = _layer_prefix(name)
        own = [module for path, module in modules.items() if path.startswith(prefix)]
        linear = [module for module in own if isinstance(module, LinearBase)]
        qkv = sum(_linear(module) for module in linear if isinstance(module, QKVParallelLinear))
        experts = {id(module.moe_config): module.moe_config for module in own if hasattr(module, "moe_config")}
        rest.append(sum(map(_linear, linear)) - qkv + sum(_experts(config, ranks) for config in experts.values()))
    attention: Any = modules[layer_names[0]]
    return ModelFlops(
        qkv=qkv,
        rest=tuple(rest),
        head=2 * model_config.get_hidden_size() * model_config.get_vocab_size(),
        attention_per_key=4 * attention.head_size * attention.num_heads * ranks,
        windows=tuple(windows),
    )


def _layer_prefix(name: str) -> str:
    """`model.layers.3.` of `model.layers.3.self_attn.attn`."""
    found = re.match(r".*?\.\d+\.", name)
    return name if found is None else found[0]


def _linear(module: Any) -> int:
    return 2 * int(module.input_size) * int(module.output_size)


def _experts(config: Any, ranks: int) -> int:
    """Of the experts that one token uses."""
    width = getattr(config, "intermediate_size", None) or config.intermediate_size_per_partition * ranks
    num_matrices = 3 if getattr(config, "is_act_and_mul", True) else 2
    return 2 * num_matrices * int(config.hidden_dim) * int(width) * int(config.experts_per_token)
