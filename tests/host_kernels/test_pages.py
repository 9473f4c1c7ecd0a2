"""Which caches the kernels take for their own."""

import pytest
import torch

from kvblend.host_kernels import HostPagedKV
from tests.host_kernels.paged_caches import ORDERS, host_pages, lay_out, page_tables, paged_cache, read_back, take_out


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("page_size", [32, 64, 128])
@pytest.mark.parametrize("num_kv_heads", [1, 3])
@pytest.mark.parametrize("head_dim", [32, 80, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_known_orders(order: str, page_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    """Reference: offsets that follow from vLLM's shape, a head's keys before its values. Ours: `HostPagedKV.of`."""
    cache = torch.empty(2, num_kv_heads, page_size, 2 * head_dim, dtype=dtype)
    half = page_size * head_dim
    expected = HostPagedKV(
        page_stride=num_kv_heads * 2 * half,
        head_stride=2 * half if num_kv_heads > 1 else 0,
        key_offset=0,
        value_offset=half,
        page_size=page_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        is_packed=order == "packed",
        dtype=dtype,
    )
    assert host_pages(order, cache) == expected


def test_pages_among_others() -> None:
    """A page may be followed by others', and values may come first."""
    cache = torch.empty(2, 3, 2, 32, 64)[:, 1]
    pages = host_pages("plain", cache)
    assert pages is not None and pages.page_stride == 3 * cache[0].numel()
    keys, values = take_out("plain", torch.arange(cache[0].numel()).view(1, 2, 32, 64))
    swapped = HostPagedKV.of(cache, keys[0] + 1024, values[0] - 1024)
    assert swapped is not None and swapped.key_offset == 1024 and swapped.value_offset == -1024


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "page_size, head_dim, dtype",
    [(16, 64, torch.float32), (48, 64, torch.bfloat16), (32, 64, torch.float16), (32, 528, torch.bfloat16)],
)
def test_unknown_caches(order: str, page_size: int, head_dim: int, dtype: torch.dtype) -> None:
    """Pages of 16 or 48 tokens, fp16, heads of more than 512."""
    assert host_pages(order, torch.empty(2, 2, page_size, 2 * head_dim, dtype=dtype)) is None


def test_unknown_head_dim() -> None:
    assert host_pages("plain", torch.empty(2, 2, 32, 48)) is None


def test_unknown_orders() -> None:
    """Keys as values are, one element elsewhere, keys of one order with values of the other, pages with gaps."""
    cache = torch.empty(2, 2, 32, 128)
    numbers = torch.arange(cache[0].numel()).view(1, *cache.shape[1:])
    (keys, values), (packed_keys, packed_values) = ([half[0] for half in take_out(order, numbers)] for order in ORDERS)
    assert HostPagedKV.of(cache, keys, values) is not None
    assert HostPagedKV.of(cache, packed_keys, packed_values) is not None
    assert HostPagedKV.of(cache, values - 2048, values) is None
    assert HostPagedKV.of(cache, packed_keys, values) is None
    assert HostPagedKV.of(cache, keys, packed_values) is None
    assert HostPagedKV.of(torch.empty(2, 2, 32, 256)[..., :128], keys, values) is None
    moved = keys.clone()
    moved[[31, 0], 1, 63] = moved[[0, 31], 1, 63]
    assert HostPagedKV.of(cache, moved, values) is None


@pytest.mark.parametrize("order", ORDERS)
def test_caches_read_back(order: str) -> None:
    """This module's own caches: what was laid out is taken out, and lies where the drawing in `HostPagedKV` says."""
    keys, values = torch.randn(2, 70, 2, 48)
    (table,) = page_tables([70], 32)
    cache = paged_cache(order, [(keys, values)], [table], 32, behind=0.0)
    assert all(map(torch.equal, read_back(order, cache, table, 70), (keys, values)))
    page = torch.arange(2 * 32 * 2 * 48).view(2, 1, 32, 2, 48)  # [k|v, page, token, head, dim]
    flat = lay_out(order, page[0], page[1])[0, 1].flatten()  # of head 1
    token, dim = 21, 35
    if order == "plain":
        key_place, value_place = dim * 32 + token, token * 48 + dim
    else:
        key_place = ((token // 16 * 24 + dim // 2) * 16 + token % 16) * 2 + dim % 2
        value_place = ((dim // 16 * 16 + token // 2) * 16 + dim % 16) * 2 + token % 2
    assert flat[key_place] == page[0, 0, token, 1, dim] and flat[32 * 48 + value_place] == page[1, 0, token, 1, dim]
