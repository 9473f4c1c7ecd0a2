"""What `write_kv` does, in plain PyTorch."""

from torch import Tensor

from kvblend.triton_kernels.paged_kv import PagedKV

__all__ = ["write_kv_reference"]


def write_kv_reference(keys: Tensor, values: Tensor, cache: PagedKV, slots: Tensor) -> None:
    """Write each token to its slot."""
    kept = slots >= cache.block_size
    blocks, tokens = slots[kept] // cache.block_size, slots[kept] % cache.block_size
    cache.keys[blocks, tokens] = keys[kept]
    cache.values[blocks, tokens] = values[kept]
