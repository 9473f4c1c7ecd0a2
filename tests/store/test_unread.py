"""Memory for what is read: a layer's parts hold every extent once, side by side, and none of another layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvblend.store import PassageKVHeader, unread
from kvblend.store.content import TensorContent
from kvblend.store.unread import Unread
from tests.store.samples import EXTENT_BYTES, make_key, make_kv

PASSAGES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 300)), min_size=1, max_size=6)


def header(number: int, *, num_layers: int, num_tokens: int) -> PassageKVHeader:
    kv = make_kv(number, shape=(num_layers, 2, num_tokens, 2, 8))
    return TensorContent(make_key(number), kv, capture_position=0).header()


@settings(deadline=None, max_examples=50)
@given(passages=PASSAGES, first_place=st.integers(0, 3), part_extents=st.integers(1, 12))
def test_parts_fill_every_passages_memory(passages: list[tuple[int, int]], first_place: int, part_extents: int) -> None:
    headers = {
        first_place + 2 * index: header(index, num_layers=num_layers, num_tokens=num_tokens)
        for index, (num_layers, num_tokens) in enumerate(passages)
    }
    memory = Unread(headers, torch.device("cpu"))
    for place in headers:
        memory.extents(place).fill_(0)
    num_layers = max(num_layers for num_layers, _ in passages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unread, "PART_BYTES", part_extents * EXTENT_BYTES)
        for layer in range(num_layers):
            for part in memory.parts(layer):
                assert part.memory.is_contiguous()
                assert part.memory.data_ptr() % EXTENT_BYTES == 0
                assert len(part.extents) == 1 or len(part.memory) <= part_extents * EXTENT_BYTES
                for place, extent in part.extents.items():
                    part.memory[extent] += 1 + layer + 10 * place
    for place, its_header in headers.items():
        for layer, extent in enumerate(memory.extents(place)):
            assert len(extent) == its_header.extent_bytes
            assert bool((extent == 1 + layer + 10 * place).all())


def test_nothing_to_read() -> None:
    memory = Unread({}, torch.device("cpu"))
    assert list(memory.parts(0)) == []
