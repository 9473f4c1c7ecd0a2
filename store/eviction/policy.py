"""What a bounded tier gives up first: policies, in terms of an index that any tier can keep."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

__all__ = ["MAX_SPARED", "EvictionPolicy", "Place", "Ranked"]

MAX_SPARED = 4
"""So often, at most, a policy spares a file that is not used meanwhile: what bounds an eviction's steps."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file stands: in one of the policy's queues, in which the lowest rank goes first."""

    queue: int
    rank: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """What a policy sees of a file. `num_uses` counts since it was put, or since the policy last spared it.

    `cost`: what it takes to compute it again, in any unit that all files of a tier share.
    """

    num_bytes: int
    cost: float
    num_uses: int
    place: Place


class EvictionPolicy(ABC):
    """Ranks a tier's files. It keeps nothing itself: what it must remember stands in the tier's index.

    All indexes apply a policy alike, and `tests/store/eviction/index_contract.py` holds them to it:

    - **Clock**: each call below that takes `now` is told a number above that of any call before it. It counts steps,
      not time; only the order matters.
    - **Put**: the file's place is `place(...)` and its `num_uses` 0. Put again, a file counts as new.
    - **Use**: `num_uses` grows by one, then the file's place is `used(...)`. A pinned file is used like any other.
    - **Candidates** are the files that are not pinned. The next one is, of the queue that `next_queue` names given the
      bytes of candidates in each, the one with the lowest rank; of equal ranks the one whose place was given first, by
      whichever call. If `spared(...)` then returns a file, the candidate stands as that says, with its `num_uses`,
      and the next one is looked for. Otherwise it is the next victim.
    - **Evict** takes victims until they have at least the bytes that were asked for, and at least one unless that is 0.
      Where all candidates together have fewer, it raises StoreFullError, and nothing is changed: none is spared either.
    - **Floor**: 0 at first. When a victim is removed, it rises to the victim's rank, unless it is higher already. What
      is removed otherwise leaves it alone.
    - **Remembering**, where the policy's `remembers` is True: a file that was evicted is remembered until as many more
      were evicted as there were left, pinned ones too, when it went; or until it is put again, of which `was_evicted`
      tells. So no more are remembered than the tier once held.

    A spared file comes last in its new queue, and is spared at most `MAX_SPARED` times in a row without a use. So an
    eviction looks at each file at most `MAX_SPARED + 1` times, and over time, as each sparing uses up what put and use
    have given, at a constant number per call.
    """

    name: str
    num_queues: int = 1
    remembers: bool = False

    @abstractmethod
    def place(self, num_bytes: int, cost: float, *, now: int, floor: float, was_evicted: bool) -> Place:
        """Where a new file stands. `num_bytes` is above 0."""

    @abstractmethod
    def used(self, file: Ranked, *, now: int, floor: float) -> Place:
        """Where a file stands once it was used again; `file.num_uses` counts that use."""

    def next_queue(self, queue_bytes: list[int]) -> int:
        """The queue whose lowest candidate is looked at next: one that has bytes, as at least one does."""
        return 0

    def spared(self, file: Ranked, *, now: int) -> Ranked | None:
        """The file as it stands from now on, instead of going; None: it goes."""
        return None
