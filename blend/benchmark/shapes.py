"""Which models are measured: the shapes of real ones, with random weights, and a tiny one where there is no GPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kvblend.blend.hf import HuggingFaceModel

__all__ = ["ModelShape", "shapes_for"]


@dataclass(frozen=True)
class ModelShape:
    """A transformers architecture and its configuration; nothing is downloaded."""

    name: str
    architecture: str
    config: Mapping[str, Any]
    dtype: torch.dtype
    passage_tokens: int
    contexts: tuple[int, ...]
    """Context tokens of the prompts that are measured, each a multiple of `passage_tokens`."""

    def build(self, device: torch.device, *, num_layers: int | None = None) -> HuggingFaceModel:
        """Make the model on `device` with the weights that training begins with; `num_layers`: with fewer layers."""
        import transformers

        layers = {} if num_layers is None else {"num_hidden_layers": num_layers}
        config = getattr(transformers, f"{self.architecture}Config")(**{**self.config, **layers})
        torch.manual_seed(0)
        with device:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=self.dtype)
        return HuggingFaceModel(model)


LLAMA = ModelShape(
    "Llama-3.1-8B",
    "Llama",
    {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    torch.bfloat16,
    passage_tokens=512,
    contexts=(4096, 16384, 32768),
)
MISTRAL = ModelShape(
    "Mistral-7B-v0.3",
    "Mistral",
    {
        "vocab_size": 32768,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    torch.bfloat16,
    passage_tokens=512,
    contexts=(4096, 16384, 32768),
)
TINY = ModelShape(
    "tiny",
    "Llama",
    {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "initializer_range": 0.15,
    },
    torch.float32,
    passage_tokens=32,
    contexts=(128,),
)


def shapes_for(device: torch.device) -> tuple[ModelShape, ...]:
    """What is measured on a device; on CPU, to show that the benchmark runs."""
    return (LLAMA, MISTRAL) if device.type == "cuda" else (TINY,)
