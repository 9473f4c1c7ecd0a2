"""What a model's passage KV takes, and how much of it fits where."""

from dataclasses import dataclass
from typing import Any

from kvblend.core.errors import InvalidRequestError

__all__ = ["KVSize", "kv_size"]

HEADER_BYTES = 4096
EXTENT_BYTES = 4096


@dataclass(frozen=True)
class KVSize:
    """The KV of one model's tokens: `dtype_bytes` a number, of `num_layers` layers of `num_kv_heads` heads."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype_bytes: int
    num_parameters: int

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token, raw."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.dtype_bytes

    def file_bytes(self, passage_tokens: int, *, ratio: float = 1.0, tensor_parallel: int = 1) -> int:
        """All files of a passage, where a codec stores `ratio` of the raw bytes: each with a header, layers padded."""
        layer = self.token_bytes * passage_tokens / self.num_layers / tensor_parallel * ratio
        extent = -(-int(layer) // EXTENT_BYTES) * EXTENT_BYTES
        return tensor_parallel * (HEADER_BYTES + self.num_layers * extent)

    def prefill_flops(self, passage_tokens: int) -> int:
        """Of a passage's linear layers: what a stored passage saves each time, and an encode costs once."""
        return 2 * self.num_parameters * passage_tokens


def kv_size(model: str) -> KVSize:
    """Read a model folder's or hub name's configuration. Raises InvalidRequestError where it has no KV heads."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(model).get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads or not getattr(config, "num_hidden_layers", None):
        raise InvalidRequestError(f"the configuration of {model!r} names no attention heads and layers", param="model")
    dtype = getattr(config, "dtype", None)
    return KVSize(
        num_layers=config.num_hidden_layers,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype_bytes=dtype.itemsize if dtype is not None else 2,
        num_parameters=_num_parameters(config, AutoModelForCausalLM),
    )


def _num_parameters(config: Any, auto_class: Any) -> int:
    """Counted on a model without memory: nothing is loaded."""
    import torch

    with torch.device("meta"):
        model = auto_class.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())
