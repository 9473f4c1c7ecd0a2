"""The index in memory: the contract of all indexes, and what it alone can do."""

from contextlib import suppress
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.core.errors import StoreFullError
from kvblend.store.eviction import LRU, MemoryIndex
from kvblend.store.eviction.policy import EvictionPolicy
from tests.store.eviction.index_contract import POLICIES, STEPS, Step, check_against_model


def index_of(policy: EvictionPolicy) -> MemoryIndex[str]:
    return MemoryIndex(policy)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@given(steps=STEPS)
def test_does_as_the_model_does(policy: EvictionPolicy, steps: list[Step]) -> None:
    check_against_model(index_of, policy, steps)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@given(steps=STEPS, num_bytes=st.integers(0, 30))
def test_victims_stay_until_they_are_removed(policy: EvictionPolicy, steps: list[Step], num_bytes: int) -> None:
    """Of three indexes alike, one names whom the other evicts, and the third iterates over: no more than is needed."""
    named, evicted, iterated = index_of(policy), index_of(policy), index_of(policy)
    for index in (named, evicted, iterated):
        for step in steps:
            with suppress(StoreFullError):
                step(index)
    num_bytes, num_before, used_bytes = min(num_bytes, named.free_bytes), len(named), named.used_bytes
    victims = named.victims(num_bytes)
    assert (len(named), named.used_bytes) == (num_before, used_bytes)
    assert victims == evicted.evict(num_bytes) == list(islice(iterated.in_order(), len(victims)))
    assert len(evicted) == num_before - len(victims) and not any(victim in evicted for victim in victims)
    for victim in victims:
        named.remove(victim, evicted=True)
    assert named.used_bytes == evicted.used_bytes <= used_bytes - num_bytes
    assert list(named.in_order()) == list(evicted.in_order())


def test_order_is_that_of_evictions() -> None:
    index = MemoryIndex[int](LRU())
    for key in range(6):
        index.put(key, num_bytes=10, cost=1.0)
    index.use(1)
    index.pin(3, pinned=True)
    assert list(index.in_order()) == [0, 2, 4, 5, 1]
    assert (index.used_bytes, index.free_bytes, len(index)) == (60, 50, 6)
    assert index.victims(0) == [] and index.victims(11) == [0, 2]
    index.remove(4, evicted=True)
    index.pin(3, pinned=False)
    assert list(index.in_order()) == [0, 2, 3, 5, 1]


def test_unknown_keys_are_told() -> None:
    index = MemoryIndex[int](LRU())
    assert not index.use(1) and not index.pin(1, pinned=True) and not index.remove(1)
    with pytest.raises(StoreFullError, match="only 0 bytes"):
        index.victims(1)
