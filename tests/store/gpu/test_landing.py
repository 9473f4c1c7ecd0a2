"""Where layers land: parts hold every extent of a layer once, and no two layers in use share a byte."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvblend.store import GPUTier, PassageKVHeader
from kvblend.store.buffers import empty_extents
from kvblend.store.content import TensorContent
from kvblend.store.gpu import landing
from kvblend.store.gpu.landing import Landing
from tests.store.samples import EXTENT_BYTES, make_key, make_kv

NUM_LAYERS = 5


def header(number: int, *, num_tokens: int) -> PassageKVHeader:
    kv = make_kv(number, shape=(NUM_LAYERS, 2, num_tokens, 2, 8))
    return TensorContent(make_key(number), kv, capture_position=0).header


@settings(deadline=None, max_examples=60)
@given(
    num_tokens=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    room_extents=st.integers(0, 40),
    window_extents=st.integers(0, 40),
    part_extents=st.integers(1, 12),
)
def test_parts_fill_every_passages_memory(
    num_tokens: list[int], room_extents: int, window_extents: int, part_extents: int
) -> None:
    """Layers are written in order, each passage's into its row; those that are still in the window are read back."""
    headers = {2 * place + 1: header(place, num_tokens=count) for place, count in enumerate(num_tokens)}
    gpu = GPUTier("cpu", budget_bytes=room_extents * EXTENT_BYTES)
    reserved = {place: passage for place, it in headers.items() if (passage := gpu.reserve(it)) is not None}
    memory = Landing(
        headers,
        reserved,
        num_layers=NUM_LAYERS,
        window=empty_extents(1, window_extents * EXTENT_BYTES)[0],
        device=torch.device("cpu"),
    )
    row_bytes = sum(it.staged_extent_bytes for place, it in headers.items() if place not in reserved)
    assert 2 <= memory.num_rows <= NUM_LAYERS
    assert memory.num_rows in (2, NUM_LAYERS) or memory.num_rows * row_bytes <= window_extents * EXTENT_BYTES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(landing, "PART_BYTES", part_extents * EXTENT_BYTES)
        for layer in range(NUM_LAYERS):
            seen: list[int] = []
            for part in memory.parts(layer):
                num_bytes = sum(len(extent) for extent in part.extents.values())
                assert len(part.extents) == 1 or num_bytes <= part_extents * EXTENT_BYTES
                if part.whole is not None:
                    assert part.whole.is_contiguous() and len(part.whole) == num_bytes
                    assert part.whole.data_ptr() == next(iter(part.extents.values())).data_ptr()
                for place, extent in part.extents.items():
                    assert extent.data_ptr() % EXTENT_BYTES == 0
                    assert len(extent) == headers[place].staged_extent_bytes
                    extent.view(torch.float32).fill_(layer + NUM_LAYERS * place)
                seen += part.extents
            assert sorted(seen) == list(headers)
            for earlier in range(max(0, layer - memory.num_rows + 1), layer + 1):
                for place in headers:
                    staged = memory.passage(place)
                    row = staged.payload[earlier % staged.num_layers]
                    assert bool((row == earlier + NUM_LAYERS * place).all())
