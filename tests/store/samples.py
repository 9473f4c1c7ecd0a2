"""Keys and KV for tests of the store: made from a number, so that a reader knows what must come back."""

import hashlib

import torch

from kvblend.store import PassageKVKey

SHAPE = (3, 2, 5, 2, 8)
CONTEXT = hashlib.sha256(b"context").hexdigest()
EXTENT_BYTES = 4096
FILE_BYTES = (1 + SHAPE[0]) * EXTENT_BYTES
"""The size of a file of SHAPE: a header and three layers of one extent each."""


def make_key(number: int, *, head_start: int = 0, num_heads: int = SHAPE[3], context: str = CONTEXT) -> PassageKVKey:
    passage_id = hashlib.sha256(str(number).encode()).hexdigest()
    return PassageKVKey("model-1", context, passage_id, head_start, head_start + num_heads)


def make_kv(
    number: int, *, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32
) -> torch.Tensor:  # [num_layers, 2, num_tokens, num_kv_heads, head_dim]
    generator = torch.Generator().manual_seed(number)
    return torch.randn(shape, generator=generator).to(dtype)
