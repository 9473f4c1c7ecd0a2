"""The contract of a tier: a place where passage KV files lie."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from kvblend.core.rest import TierStats
from kvblend.store.content import PassageKVContent
from kvblend.store.key import PassageKVKey
from kvblend.store.open_passage import OpenPassageKV

__all__ = ["Entry", "Pin", "Tier", "VerifyReport"]


@dataclass(frozen=True)
class Entry:
    """One whole file of a tier, or what stands for one.

    `used_ns` is when it was last put or opened, in nanoseconds since the epoch.
    """

    key: PassageKVKey
    num_bytes: int
    used_ns: int


@dataclass
class VerifyReport:
    """What `verify` read and mended. Files are named relative to their tier's folder."""

    num_files: int = 0
    num_bytes: int = 0
    quarantined: tuple[str, ...] = ()
    num_temporary_removed: int = 0


class Pin(ABC):
    """One file that is kept from eviction by this process until `release` or the process's end."""

    @abstractmethod
    def holds(self) -> bool:
        """Whether the pinned file is still the one that a lookup finds."""

    @abstractmethod
    def release(self) -> None:
        """Let the file go. Idempotent."""


class Tier(ABC):
    """A place where passage KV files lie, within a byte budget.

    Files are immutable and content-addressed: a key's file, once whole, never changes, and whoever
    finds it under its key may read it. All methods are safe from several threads and, for what lies in a
    shared place, several processes. `contains` and `open` take no lock; all that changes which files
    there are is done by one process at a time.
    """

    name: str
    location: str
    budget_bytes: int

    slower: "Tier | None" = None
    """The next slower tier: what is evicted here moves there."""

    @abstractmethod
    def contains(self, key: PassageKVKey) -> bool:
        """Whether a file lies here under `key`. It is not opened: `open` may yet find that it is corrupt."""

    @abstractmethod
    def open(self, key: PassageKVKey) -> OpenPassageKV | None:
        """Open the file and mark it as used now; None where there is none.

        The open file stays readable whatever happens to the tier: it is one that an eviction or a deletion does
        not hurt, or that is not evicted while it is open. A file whose header fails a check is quarantined and
        None is returned.
        """

    @abstractmethod
    def touch(self, key: PassageKVKey) -> bool:
        """Mark the file as used now; False where there is none. It is not opened."""

    @abstractmethod
    def put(self, content: PassageKVContent, *, used_ns: int | None = None) -> bool:
        """Write a file; on return it is whole, under its key, and survives a crash as far as the tier does.

        A file that lies there already is kept, and False is returned. Room is made first: the least
        recently used files are demoted to `slower`, or dropped where they lie there already or do not fit.
        `used_ns` is when the file was last used; now, if None.

        Raises StoreFullError where room cannot be made: the file is over the budget, or too much is pinned.
        Raises CorruptPassageKVError where the content's own source fails its checks, OSError where the place
        cannot be written. Then nothing changed, but what was evicted to make room.
        """

    @abstractmethod
    def pin(self, key: PassageKVKey) -> Pin | None:
        """Keep a file from eviction; None where there is none. Any number of pins may hold one file."""

    @abstractmethod
    def demote(self, key: PassageKVKey) -> bool:
        """Move a file to `slower` now.

        False where there is no such file or tier, or the file is pinned, corrupt or does not fit there.
        """

    @abstractmethod
    def delete(self, *, model_fingerprint: str, encode_context: str, passage_id: str) -> int:
        """Delete every head range of a passage KV, pinned or not; returns the number of files."""

    @abstractmethod
    def quarantine(self, file: OpenPassageKV) -> bool:
        """Put a corrupt file aside: its key is a miss from now on. Logs one warning.

        False, and nothing is done, where the file is no longer what lies under its key.
        """

    @abstractmethod
    def evict(self, num_bytes: int) -> int:
        """Evict least recently used files until at least `num_bytes` are freed; returns bytes freed.

        Raises StoreFullError where pins hold too much; then nothing was evicted.
        """

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """The files that lie here, in no order; a file that comes or goes meanwhile may be left out."""

    @abstractmethod
    def verify(self) -> VerifyReport:
        """Read and check everything; quarantine what is bad, remove what dead writers left."""

    @abstractmethod
    def stats(self) -> TierStats:
        """Count what lies here now."""

    @abstractmethod
    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant is broken: for tests, while no other process writes."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the tier holds. Files stay."""
