"""The arena's allocator: ranges never overlap, and everything that is given back is used again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvblend.store.gpu.extent_allocator import ExtentAllocator
from tests.store.samples import EXTENT_BYTES

NUM_EXTENTS = 24

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, NUM_EXTENTS), st.integers(1, EXTENT_BYTES)), max_size=60)


@settings(deadline=None)
@given(steps=STEPS)
def test_ranges_never_overlap_and_holes_always_join(steps: list[tuple[bool, int, int]]) -> None:
    """Against a map of which extent is whose: a range is refused only where no run of free extents is long enough."""
    allocator = ExtentAllocator(NUM_EXTENTS * EXTENT_BYTES)
    owners: list[int | None] = [None] * NUM_EXTENTS
    for frees, size, last_bytes in steps:
        taken = sorted({owner for owner in owners if owner is not None})
        if frees and taken:
            start = taken[size % len(taken)]
            allocator.free(start)
            owners = [None if owner == start else owner for owner in owners]
        else:
            found = allocator.allocate(size * EXTENT_BYTES + last_bytes)
            longest = max(len(run) for run in "".join(".x"[owner is not None] for owner in owners).split("x"))
            assert (found is not None) == (longest >= size + 1)
            if found is not None:
                first = found // EXTENT_BYTES
                assert found % EXTENT_BYTES == 0
                assert owners[first : first + size + 1] == [None] * (size + 1)
                owners[first : first + size + 1] = [found] * (size + 1)
        allocator.check_integrity()
        assert allocator.used_bytes == EXTENT_BYTES * sum(owner is not None for owner in owners)
    for start in {owner for owner in owners if owner is not None}:
        allocator.free(start)
    assert allocator.allocate(NUM_EXTENTS * EXTENT_BYTES) == 0


def test_the_smallest_hole_that_fits_is_cut() -> None:
    allocator = ExtentAllocator(10 * EXTENT_BYTES)
    starts = [allocator.allocate(size * EXTENT_BYTES) for size in (4, 1, 2, 1)]
    allocator.free(0)
    allocator.free(5 * EXTENT_BYTES)
    assert starts == [0, 4 * EXTENT_BYTES, 5 * EXTENT_BYTES, 7 * EXTENT_BYTES]
    assert allocator.allocate(2 * EXTENT_BYTES) == 5 * EXTENT_BYTES


def test_a_copy_goes_its_own_way() -> None:
    allocator = ExtentAllocator(4 * EXTENT_BYTES)
    assert allocator.allocate(3 * EXTENT_BYTES) == 0
    copy = allocator.without([0])
    assert copy.fits(4 * EXTENT_BYTES)
    assert not allocator.fits(2 * EXTENT_BYTES)
    assert allocator.without([]).used_bytes == allocator.used_bytes


def test_what_is_not_taken_cannot_be_freed() -> None:
    with pytest.raises(KeyError):
        ExtentAllocator(EXTENT_BYTES).free(0)


def test_an_empty_arena_fits_nothing() -> None:
    assert ExtentAllocator(0).allocate(1) is None
