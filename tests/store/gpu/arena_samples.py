"""Short words for what tests do to a GPU tier."""

from collections.abc import Sequence

from kvblend.core.errors import StoreFullError
from kvblend.store import GPUTier, PassageKVKey
from kvblend.store.content import TensorContent
from kvblend.store.gpu.arena_passage import ArenaPassage
from tests.store.samples import SHAPE, make_key, make_kv

__all__ = ["contains", "held", "opened", "put"]


def put(gpu: GPUTier, number: int, *, shape: Sequence[int] = SHAPE) -> bool:
    """As a stager does: reserve, write the layers, commit. Raises StoreFullError where there is no room."""
    kv = make_kv(number, shape=tuple(shape))
    passage = gpu.reserve(TensorContent(make_key(number), kv, capture_position=0).header)
    if passage is None:
        raise StoreFullError("no room")
    with passage:
        passage.staged().payload.copy_(kv)
        return gpu.commit(passage, gpu.stream.event())


def opened(gpu: GPUTier, number: int) -> ArenaPassage:
    passage = gpu.open(make_key(number))
    assert passage is not None
    return passage


def contains(gpu: GPUTier, number: int) -> bool:
    return gpu.contains(make_key(number))


def held(gpu: GPUTier) -> set[PassageKVKey]:
    return set(gpu.keys())
