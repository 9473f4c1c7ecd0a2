"""The ring of host memory: pieces in use never overlap, and room is found again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvblend.store.gpu.host_ring import HostRing, Piece
from tests.store.samples import EXTENT_BYTES

NUM_EXTENTS = 8


class Copied:
    """A CUDA event of a copy, as far as the ring knows one."""

    def __init__(self) -> None:
        self.passed = False

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self.passed = True


@settings(deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, NUM_EXTENTS * EXTENT_BYTES), st.integers(0, 3)), max_size=40))
def test_pieces_in_use_never_overlap(sizes: list[tuple[int, int]]) -> None:
    """Pieces are taken, and now and then the oldest released; one that finds no room does once all were copied."""
    ring = HostRing(NUM_EXTENTS * EXTENT_BYTES, page_locked=False)
    in_use: list[tuple[Piece, Copied]] = []
    released = 0
    for size, num_released in sizes:
        piece = ring.take(size)
        while piece is None:
            assert in_use
            if not ring.wait():
                ring.release(in_use[released][0], in_use[released][1])  # type: ignore[arg-type]
                released += 1
                continue
            assert in_use.pop(0)[1].passed
            released -= 1
            piece = ring.take(size)
        assert len(piece.memory) == size
        assert piece.memory.data_ptr() % EXTENT_BYTES == 0
        for other, copied in in_use:
            assert copied.passed or piece.end <= other.start or other.end <= piece.start
        in_use.append((piece, Copied()))
        for other, copied in in_use[released : released + num_released]:
            ring.release(other, copied)  # type: ignore[arg-type]
            released += 1


def test_a_ring_grows_to_its_largest_piece() -> None:
    ring = HostRing(EXTENT_BYTES, page_locked=False)
    small = ring.take(100)
    assert small is not None
    assert ring.take(3 * EXTENT_BYTES) is None
    assert not ring.wait()
    ring.release(small)
    large = ring.take(3 * EXTENT_BYTES)
    assert large is not None
    assert ring.num_bytes == 3 * EXTENT_BYTES
    ring.release(large)
    assert ring.wait()
    assert not ring.wait()


@pytest.mark.parametrize("num_pieces", [1, 3])
def test_what_is_copied_is_reused_without_waiting(num_pieces: int) -> None:
    ring = HostRing(num_pieces * EXTENT_BYTES, page_locked=False)
    starts = []
    for _ in range(2 * num_pieces):
        piece = ring.take(EXTENT_BYTES)
        assert piece is not None
        ring.release(piece)
        starts.append(piece.memory.data_ptr())
    assert len(set(starts)) == 1  # released at once, so always from the start
