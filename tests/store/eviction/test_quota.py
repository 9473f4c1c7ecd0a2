"""Quotas: as much goes as must, and no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.core.errors import StoreFullError
from kvblend.store.eviction.quota import bytes_over_quota

BYTES = st.integers(0, 50)


@given(owned=BYTES, quota=BYTES, num_bytes=BYTES)
def test_what_must_go(owned: int, quota: int, num_bytes: int) -> None:
    """Against trying out every amount."""

    def over() -> int:
        return bytes_over_quota("a", num_bytes, owned_bytes={"a": owned, "b": 7}, quota_bytes={"a": quota, "b": 0})

    enough = [gone for gone in range(owned + 1) if owned - gone + num_bytes <= quota]
    if enough:
        assert over() == enough[0]
    else:
        with pytest.raises(StoreFullError, match=f"{num_bytes} bytes .* the quota of 'a', {quota} bytes"):
            over()


def test_without_a_quota_nothing_must_go() -> None:
    assert bytes_over_quota("b", 1 << 40, owned_bytes={"b": 1 << 40}, quota_bytes={"a": 1}) == 0
    assert bytes_over_quota("a", 1, owned_bytes={}, quota_bytes={"a": 1}) == 0
