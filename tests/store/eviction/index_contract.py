"""What every index of files must do with a policy: random steps on it and on a plain model, side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hypothesis import strategies as st

from kvblend.core.errors import StoreFullError
from kvblend.store.eviction.cost_aware import CostAware
from kvblend.store.eviction.lru import LRU
from kvblend.store.eviction.policy import EvictionPolicy
from kvblend.store.eviction.s3_fifo import S3FIFO
from tests.store.eviction.model_index import ModelIndex

__all__ = ["POLICIES", "STEPS", "EvictionIndex", "Step", "check_against_model"]

POLICIES: tuple[EvictionPolicy, ...] = (LRU(), S3FIFO(), S3FIFO(0.4, promoting_uses=1, max_uses=2), CostAware())


class EvictionIndex(Protocol):
    """What an index can do. `evict` chooses and drops; it raises StoreFullError where too much is pinned."""

    @property
    def used_bytes(self) -> int: ...

    def put(self, key: str, num_bytes: int, cost: float) -> object: ...

    def use(self, key: str) -> object: ...

    def remove(self, key: str) -> object: ...

    def pin(self, key: str, *, pinned: bool) -> object: ...

    def evict(self, num_bytes: int) -> list[str]: ...


Step = Callable[[EvictionIndex], object]
"""One call of an index."""


@dataclass(frozen=True)
class Put:
    key: str
    num_bytes: int
    cost: float

    def __call__(self, index: EvictionIndex) -> object:
        return index.put(self.key, self.num_bytes, self.cost)


@dataclass(frozen=True)
class Use:
    key: str

    def __call__(self, index: EvictionIndex) -> object:
        return index.use(self.key)


@dataclass(frozen=True)
class Remove:
    key: str

    def __call__(self, index: EvictionIndex) -> object:
        return index.remove(self.key)


@dataclass(frozen=True)
class Pin:
    key: str
    pinned: bool

    def __call__(self, index: EvictionIndex) -> object:
        return index.pin(self.key, pinned=self.pinned)


@dataclass(frozen=True)
class Evict:
    num_bytes: int

    def __call__(self, index: EvictionIndex) -> object:
        return index.evict(self.num_bytes)


KEYS = st.sampled_from("abcdefghij")
"""So few that files come back while they are remembered."""

STEPS: st.SearchStrategy[Sequence[Step]] = st.lists(
    st.one_of(
        st.builds(Put, KEYS, st.sampled_from([1, 2, 3, 8]), st.sampled_from([1.0, 2.0, 3.0])),
        st.builds(Use, KEYS),
        st.builds(Use, KEYS),
        st.builds(Evict, st.integers(0, 12)),
        st.builds(Pin, KEYS, st.booleans()),
        st.builds(Remove, KEYS),
    ),
    min_size=10,
    max_size=80,
)


def check_against_model(
    make_index: Callable[[EvictionPolicy], EvictionIndex], policy: EvictionPolicy, steps: Sequence[Step]
) -> None:
    """Take `steps` on an empty index and on the model: the same victims in the same order, and the same refusals.

    At the end all that is not pinned is evicted, one after the other.
    """
    index, model = make_index(policy), ModelIndex(policy)
    for step in steps:
        _check_step(step, index, model)
    for _ in range(len(model.files)):
        _check_step(Evict(1), index, model)


def _check_step(step: Step, index: EvictionIndex, model: ModelIndex) -> None:
    if not isinstance(step, Evict):
        step(index)
        step(model)
    else:
        assert _victims(index, step) == _victims(model, step), step
    assert index.used_bytes == model.used_bytes, step


def _victims(index: EvictionIndex, step: Evict) -> list[str] | None:
    try:
        return index.evict(step.num_bytes)
    except StoreFullError:
        return None
