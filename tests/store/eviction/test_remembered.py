"""What a tier remembers of evicted files is bounded by what it once held."""

from hypothesis import given
from hypothesis import strategies as st

from kvblend.store.eviction.remembered import Remembered


@given(nums_left=st.lists(st.integers(0, 12), max_size=60))
def test_remembers_no_more_than_there_were_files(nums_left: list[int]) -> None:
    """However the number of files goes up and down; each file is evicted once."""
    remembered: Remembered[int] = Remembered()
    for at, num_left in enumerate(nums_left):
        remembered.evicted(at, num_left=num_left)
        assert len(remembered) <= max(nums_left[: at + 1])
    num_evicted = len(nums_left)
    expected = [at for at, num_left in enumerate(nums_left) if at + 1 + num_left > num_evicted]
    assert [at for at in range(num_evicted) if remembered.forget(at)] == expected
    assert not any(remembered.forget(at) for at in range(num_evicted))
