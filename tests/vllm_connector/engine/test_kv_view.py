"""The kernels' views of every CUDA backend's cache, in every layout that vLLM may choose."""

import pytest
import torch
from vllm.v1.kv_cache_layout import KVCacheLayout

from kvblend.blend import AttentionSpec
from kvblend.vllm_connector.engine.kv_view import paged_view
from kvblend.vllm_connector.engine.layer_cache import LayerCache
from tests.vllm_connector.engine.backend_caches import BACKENDS, allocate_layers

CUT = (KVCacheLayout.LBNHC, KVCacheLayout.LBHNC)
"""Only there does vLLM cut blocks into pages: where a block is one dense page (v1/kv_cache_interface.py, line 402)."""

CASES = [(layout, None) for layout in KVCacheLayout] + [(layout, 16) for layout in CUT]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("layout", "pages"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_the_backend_writes_is_where_the_view_reads(
    backend: str, layout: KVCacheLayout, pages: int | None, dtype: torch.dtype
) -> None:
    """Reference: the backend's own split of its cache. Ours: views learnt from what it writes, and block reads."""
    torch.manual_seed(0)
    named, _ = allocate_layers(
        backend, layout, [None, None], num_kv_heads=3, head_dim=8, dtype=dtype, num_blocks=6, block_size=32,
        kernel_block_size=pages,
    )  # fmt: skip
    blocks, start, end = [4, 0, 2, 5], 5, 125
    for layer in named.values():
        paged = LayerCache(layer, 0, AttentionSpec(layer.impl.scale), None, block_size=32)
        assert paged.view is not None
        assert paged.page_size == (pages or 32) and paged.view.block_size == paged.page_size
        assert paged.view.keys.untyped_storage().data_ptr() == layer.kv_cache.untyped_storage().data_ptr()
        assert torch.equal(paged.view.keys[0].float(), torch.zeros(paged.page_size, 3, 8))
        keys, values = torch.randn(2, end - start, 3, 8).to(dtype)
        paged.write(blocks, start, keys, values)
        positions = torch.arange(start, end)
        real = torch.tensor(blocks)[positions // 32] != 0
        table = torch.tensor(paged.pages(blocks))
        at, token = table[positions // paged.page_size], positions % paged.page_size
        assert torch.equal(paged.view.keys[at, token][real], keys[real])
        assert torch.equal(paged.view.values[at, token][real], values[real])
        read_keys, read_values = paged.read(blocks, start, end)
        assert torch.equal(read_keys[real], keys[real]) and torch.equal(read_values[real], values[real])
        assert layer.kv_cache[1 if pages is None else 2].isnan().all()  # nobody's block


def test_an_order_that_strides_cannot_say_has_no_view() -> None:
    """Two tokens' elements interleaved, as where keys are packed for a CPU's matrix instructions."""
    cache = torch.zeros(3, 2, 4, 16)
    plain = torch.arange(4 * 2 * 8).view(4, 2, 8)
    assert paged_view(cache, plain, plain + 64) is not None
    packed = torch.arange(2 * 2 * 8 * 2).view(2, 2, 8, 2).permute(0, 3, 1, 2).reshape(4, 2, 8)
    assert paged_view(cache, packed, plain + 64) is None
