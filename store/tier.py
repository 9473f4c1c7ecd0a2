"""The contracts of tiers: what every place where passage KV files lie can do, and what a bounded one can besides."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kvblend.core.rest import TierStats
from kvblend.store.content import PassageKVContent
from kvblend.store.deadline import Deadline
from kvblend.store.key import PassageKVKey, Variant
from kvblend.store.stored_passage import StoredPassageKV

__all__ = ["BoundedTier", "Entry", "Tier", "VerifyReport"]


@dataclass(frozen=True)
class Entry:
    """One whole file of a tier. `used_ns` is when it was last put or opened, in nanoseconds since the epoch."""

    key: PassageKVKey
    num_bytes: int
    used_ns: int
    num_uses: int = 0
    pinned: bool = False
    owner: str = ""


@dataclass
class VerifyReport:
    """What `verify` read and mended. Files are named relative to their tier's folder."""

    num_files: int = 0
    num_bytes: int = 0
    quarantined: tuple[str, ...] = ()
    num_temporary_removed: int = 0


class Tier(ABC):
    """A place where passage KV files lie: a folder, or a store at the other end of a network.

    Files are immutable and content-addressed: a key's file, once whole, never changes, but that one by another codec
    may take its place, and whoever finds it under its key may read it. All methods take many keys at once, are safe
    from several threads and, for what lies in a shared place, several processes, and may block until their deadline:
    none is called by an engine's own thread.
    """

    name: str
    location: str
    """A path, or an address without credentials."""
    num_failures: int = 0
    """Calls that failed or were late, and that their caller took for a miss."""
    takes_puts: bool = True
    """Whether it is written at all. Where it is not, nothing can last there, and `put` raises OSError."""

    def __str__(self) -> str:
        return f"{self.name} tier at {self.location}"

    @property
    def is_shunned(self) -> bool:
        """Whether a circuit breaker answers in its place, since it failed again and again."""
        return False

    @abstractmethod
    def lookup_many(self, keys: Collection[PassageKVKey], deadline: Deadline) -> set[PassageKVKey]:
        """Those of `keys` that a file lies under. None is opened: `fetch_many` may yet find one corrupt."""

    @abstractmethod
    def fetch_many(self, keys: Collection[PassageKVKey], deadline: Deadline) -> Mapping[PassageKVKey, StoredPassageKV]:
        """Open files, and mark them as used now. What is not there, corrupt or late is left out.

        An open file stays readable until it is closed, whatever happens to the tier. One whose header fails a check is
        quarantined.
        """

    @abstractmethod
    def put(self, content: PassageKVContent, deadline: Deadline) -> bool:
        """Write a file; on return it is whole, under its key, and lasts as long as what lies in the tier does.

        A file that lies there already is kept, and False is returned. Raises StoreFullError where room cannot be made,
        CorruptPassageKVError where the content's own source fails its checks, OSError where the place cannot be written
        in time. Then nothing changed, but what was evicted to make room.
        """

    @abstractmethod
    def delete(self, variants: Collection[Variant], deadline: Deadline) -> int:
        """Delete every head range of passage KV, pinned or not, and copies in quarantine; returns the number of files.

        Raises OSError where the place does not answer in time: then some may be there still.
        """

    @abstractmethod
    def variants(self, model_fingerprint: str, passage_id: str, deadline: Deadline) -> set[PassageKVKey]:
        """What there is of one passage, behind whatever encode contexts, of all head ranges."""

    def claim(self, variant: Variant, seconds: float, deadline: Deadline) -> Callable[[], object] | None:
        """Claim the encode of a passage among all that share this place, for so long at most, or as long as the process
        lives; returns what gives it back, or None where somebody else has it. A place that has no means to, or does not
        answer in time, keeps nobody from it.
        """
        return lambda: None

    @abstractmethod
    def stats(self) -> TierStats:
        """Counts of what lies here now. It reads counters, and scans nothing."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the tier holds. Files stay."""


class BoundedTier(Tier):
    """A tier with a byte budget, of which files are evicted: moved to `slower`, or dropped."""

    budget_bytes: int
    place: str
    """Which place this is among all of this host's, by whatever path a process sees it. Of no two hosts the same."""

    slower: "BoundedTier | None" = None
    """The next slower tier: what is evicted here, and does not lie there, moves there."""

    @abstractmethod
    def replace(self, content: PassageKVContent) -> bool:
        """Write a file in place of the one that lies under its key, whose use and pin remain: the same numbers, by
        another codec. False where none lies there. Whoever has the old one open keeps it. Raises as `put`.
        """

    @abstractmethod
    def touch_many(self, keys: Collection[PassageKVKey]) -> set[PassageKVKey]:
        """Mark files as used now, without opening them; returns those that lie here."""

    @abstractmethod
    def has_room(self, num_bytes: int) -> bool:
        """Whether so many bytes, written now, would fit without an eviction."""

    @abstractmethod
    def pin(self, variants: Collection[Variant], *, pinned: bool) -> int:
        """Keep files from eviction until they are unpinned, beyond this process's life; returns how many there are."""

    @abstractmethod
    def move_down(self, keys: Collection[PassageKVKey]) -> set[PassageKVKey]:
        """Move files to `slower`; returns those that are there now and not here: not what is pinned or does not fit."""

    @abstractmethod
    def evict(self, num_bytes: int, *, owner: str | None = None) -> int:
        """Evict by the tier's policy until at least `num_bytes` are freed; returns bytes freed.

        Raises StoreFullError where pins hold too much; then nothing was evicted. Of one `owner`'s files only what is
        not pinned goes, and nothing is raised.
        """

    @abstractmethod
    def entries(self, after: str = "", limit: int | None = None) -> Sequence[Entry]:
        """The files that lie here, by their names, of those behind `after` the first `limit`."""

    @abstractmethod
    def described(self, variants: Collection[Variant]) -> Sequence[Entry]:
        """What lies here of variants: all head ranges."""

    @abstractmethod
    def owned_bytes(self) -> Mapping[str, int]:
        """Bytes by owner, of those that have any."""

    @abstractmethod
    def verify(self) -> VerifyReport:
        """Read and check everything; quarantine what is bad, remove what dead writers left, count anew."""

    @abstractmethod
    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant is broken: for tests, while no other process writes."""

    def all_entries(self, page: int = 1024) -> Iterator[Entry]:
        """Every entry, a page at a time: no lock is held between pages."""
        after = ""
        while found := self.entries(after, page):
            yield from found
            after = found[-1].key.file_name
