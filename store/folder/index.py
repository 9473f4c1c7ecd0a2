"""A folder tier's index: what lies in the folder, how it is used, and what goes first."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvblend.core.errors import StoreFullError
from kvblend.store.eviction.policy import EvictionPolicy, Place, Ranked
from kvblend.store.folder.index_database import INDEX_NAME, IndexDatabase

__all__ = ["INDEX_NAME", "Evictions", "FileKind", "FolderIndex", "IndexedFile", "Totals"]

FileKind = Literal["whole", "leaving", "writing", "quarantined"]
EVICTIONS = ("evictions", "evicted_idle_s")
"""What counts them in the database's `state`, once there was one."""
COLUMNS = "name, kind, num_bytes, used_ns, num_uses, pinned, owner"


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A row. `name` is relative to the tier's folder; a `leaving` file is whole, and chosen to be evicted."""

    name: str
    kind: FileKind
    num_bytes: int
    used_ns: int
    num_uses: int = 0
    pinned: bool = False
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of a tier. `used_bytes` are those of all kinds of files, `free_bytes` of those that may be evicted."""

    used_bytes: int
    num_files: int
    num_pinned: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Evictions:
    """Files that were evicted, and how long before each had been used last, in all."""

    num_files: int
    idle_s: float


class FolderIndex(IndexDatabase):
    """Rows of an SQLite database in the tier's folder, which all processes that share the tier write to.

    It holds nothing that the folder does not: where it is lost it is made anew by a scan. A crash can leave a row
    without its file, or a file without its row, never a count that is too low for longer than until the file is used.
    Methods but `transaction` are called within one; it excludes all other threads and processes.
    Raises OSError where the database cannot be read or written.
    """

    def __init__(self, root: Path, policy: EvictionPolicy, rebuild: Callable[["FolderIndex"], object]) -> None:
        """`rebuild` fills an index that is new, in its first transaction."""
        self._policy, self._rebuild = policy, rebuild
        super().__init__(root)

    def _opened(self, *, is_new: bool) -> None:
        if is_new:
            self._connection.execute("INSERT INTO state VALUES ('policy', ?)", (self._policy.name,))
            self._rebuild(self)
        elif self._state("policy") != self._policy.name:
            self._rank_anew()

    def _rank_anew(self) -> None:
        """Place files by another policy than ranked them so far, in the order of their last use."""
        self._set_state("floor", 0)
        self._set_state("policy", self._policy.name)
        rows = self._connection.execute("SELECT name, num_bytes, cost FROM files ORDER BY used_ns").fetchall()
        for name, num_bytes, cost in rows:
            now = self._tick()
            place = self._policy.place(max(1, num_bytes), cost, now=now, floor=0.0, was_evicted=False)
            self._place(name, Ranked(num_bytes, cost, 0, place), now)

    @property
    def clean(self) -> bool:
        """Whether whoever closed the tier last had its index right."""
        return bool(self._state("clean"))

    @clean.setter
    def clean(self, value: bool) -> None:
        self._set_state("clean", int(value))

    def add(self, file: IndexedFile, *, cost: float) -> None:
        """Take a file up, as new; in place of the row that its name has."""
        self._connection.execute("DELETE FROM files WHERE name = ?", (file.name,))
        now, was_evicted = self._tick(), self._forget_evicted(file.name)
        place = self._policy.place(
            max(1, file.num_bytes), cost, now=now, floor=self._state("floor"), was_evicted=was_evicted
        )
        self._connection.execute(
            "INSERT INTO files (name, kind, num_bytes, cost, used_ns, pinned, owner, queue, rank, placed_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                file.name, file.kind, file.num_bytes, cost, file.used_ns, file.pinned, file.owner, place.queue,
                place.rank, now,
            ),
        )  # fmt: skip

    def use(self, names: Iterable[str], *, used_ns: int | None = None) -> list[str]:
        """Mark whole files as used, now or then; returns those that have no row."""
        now_ns, unknown = used_ns or time.time_ns(), []
        for name in names:
            row = self._connection.execute(
                "SELECT num_bytes, cost, num_uses, queue, rank FROM files"
                " WHERE name = ? AND kind IN ('whole', 'leaving')",
                (name,),
            ).fetchone()
            if row is None:
                unknown.append(name)
                continue
            num_bytes, cost, num_uses, queue, rank = row
            now = self._tick()
            file = Ranked(num_bytes, cost, num_uses + 1, Place(queue, rank))
            place = self._policy.used(file, now=now, floor=self._state("floor"))
            self._place(name, Ranked(num_bytes, cost, num_uses + 1, place), now)
            self._connection.execute("UPDATE files SET used_ns = max(used_ns, ?) WHERE name = ?", (now_ns, name))
        return unknown

    def change(self, name: str, *, kind: FileKind, new_name: str | None = None) -> None:
        """Make a row one of another kind, and name."""
        self._connection.execute("DELETE FROM files WHERE name = ?1 AND ?1 != ?2", (new_name or name, name))
        self._connection.execute(
            "UPDATE files SET kind = ?, name = ?, placed_at = ? WHERE name = ?",
            (kind, new_name or name, self._tick(), name),
        )

    def resize(self, name: str, num_bytes: int) -> bool:
        """Give a whole file another size, since it was replaced; False where it has no row."""
        changed = self._connection.execute(
            "UPDATE files SET num_bytes = ?, kind = 'whole' WHERE name = ? AND kind IN ('whole', 'leaving')",
            (num_bytes, name),
        )
        return changed.rowcount == 1

    def pin(self, name: str, *, pinned: bool) -> None:
        self._connection.execute("UPDATE files SET pinned = ? WHERE name = ?", (pinned, name))

    def forget(self, name: str, *, evicted: bool = False) -> None:
        """Drop a row. Where it goes as a victim the floor rises, and the policy may have it remembered."""
        row = self._connection.execute("DELETE FROM files WHERE name = ? RETURNING rank, used_ns", (name,)).fetchone()
        if evicted and row is not None:
            rank, used_ns = row
            self._set_state("floor", max(self._state("floor"), rank))
            self._count_eviction(max(0, time.time_ns() - used_ns) / 1e9)
            if self._policy.remembers:
                self._remember(name)

    def choose(self, num_bytes: int, *, owner: str | None = None) -> list[IndexedFile]:
        """The files that the policy gives up first, of at least `num_bytes`; of those of one `owner`, if given.

        They are `leaving` from now on. What is leaving already, or quarantined, goes before others. Raises
        StoreFullError, and chooses nothing, where pins and writers hold too much.
        """
        chosen: list[IndexedFile] = []
        freed = 0
        if owner is None:
            gone = "kind != 'whole' AND kind IN ('leaving', 'quarantined') AND pinned = 0"
            for row in self._rows(f"WHERE {gone} ORDER BY kind DESC, placed_at"):
                if freed >= num_bytes:
                    break
                chosen.append(row)
                freed += row.num_bytes
        free = self._free_bytes(owner)
        if freed + sum(free) < num_bytes:
            whose = "" if owner is None else f" of {owner}"
            raise StoreFullError(
                f"only {freed + sum(free)} bytes{whose} at {self._path.parent} are neither pinned nor being written, "
                f"not {num_bytes}"
            )
        while freed < num_bytes:
            file = self._next_victim(free, owner)
            chosen.append(file)
            freed += file.num_bytes
        return chosen

    def get(self, name: str) -> IndexedFile | None:
        return next(self._rows("WHERE name = ?", name), None)

    def under(self, prefix: str, kinds: Collection[FileKind] = ("whole", "leaving")) -> list[IndexedFile]:
        """Files whose names begin with `prefix`, in the order of their names."""
        found = self._rows("WHERE name >= ? AND name < ? ORDER BY name", prefix, prefix + "\U0010ffff")
        return [file for file in found if file.kind in kinds]

    def page(self, after: str, limit: int, *, ending: str) -> list[IndexedFile]:
        """The first `limit` whole files whose names are behind `after` and end in `ending`."""
        condition = "WHERE name > ?1 AND kind IN ('whole', 'leaving') AND substr(name, -length(?2)) = ?2"
        return list(self._rows(f"{condition} ORDER BY name LIMIT ?3", after, ending, limit))

    def all(self) -> list[IndexedFile]:
        return list(self._rows(""))

    def unusual(self, kind: FileKind) -> list[IndexedFile]:
        """Files of a kind of which there are few: any but `whole`."""
        return list(self._rows("WHERE kind != 'whole' AND kind = ?", kind))

    def totals(self) -> Totals:
        row = self._connection.execute(
            "SELECT coalesce(sum(num_bytes), 0),"
            " coalesce(sum(num_files) FILTER (WHERE kind IN ('whole', 'leaving')), 0),"
            " coalesce(sum(num_files) FILTER (WHERE pinned AND kind IN ('whole', 'leaving')), 0),"
            " coalesce(sum(num_bytes) FILTER (WHERE kind != 'writing' AND NOT pinned), 0) FROM totals"
        ).fetchone()
        return Totals(*row)

    def evictions(self) -> Evictions:
        """All, since the index was made."""
        counts = dict(self._connection.execute("SELECT name, value FROM state WHERE name IN (?, ?)", EVICTIONS))
        num_files, idle_s = (counts.get(name, 0) for name in EVICTIONS)
        return Evictions(int(num_files), float(idle_s))

    def _count_eviction(self, idle_s: float) -> None:
        for name, value in zip(EVICTIONS, (1, idle_s), strict=True):
            self._connection.execute(
                "INSERT INTO state VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = value + ?2", (name, value)
            )

    def owned_bytes(self) -> dict[str, int]:
        """Bytes by owner, without those of nobody."""
        rows = self._connection.execute(
            "SELECT owner, sum(num_bytes) FROM totals WHERE owner != '' GROUP BY owner HAVING sum(num_bytes) > 0"
        )
        return dict(rows.fetchall())

    def evictable_bytes(self, owner: str) -> int:
        """Bytes of an owner's files that are whole and not pinned."""
        return sum(self._free_bytes(owner))

    def clear(self) -> None:
        """Forget every file."""
        self._connection.execute("DELETE FROM files")

    def _next_victim(self, free: list[int], owner: str | None) -> IndexedFile:
        """Choose one, having moved those before it that the policy spares. `free`: its bytes by queue, kept right."""
        where, values = ("owner = ? AND owner != ''", (owner,)) if owner is not None else ("true", ())
        while True:
            queue = self._policy.next_queue(free)
            lowest = [
                row
                for stored in self._stored_queues(queue)
                for row in self._connection.execute(
                    f"SELECT rank, placed_at, name, num_bytes, cost, num_uses FROM files"
                    f" WHERE kind = 'whole' AND pinned = 0 AND {where} AND queue = ? ORDER BY rank, placed_at LIMIT 1",
                    (*values, stored),
                )
            ]
            rank, _, name, num_bytes, cost, num_uses = min(lowest)
            now = self._tick()
            spared = self._policy.spared(Ranked(num_bytes, cost, num_uses, Place(queue, rank)), now=now)
            free[queue] -= num_bytes
            if spared is None:
                self._connection.execute("UPDATE files SET kind = 'leaving' WHERE name = ?", (name,))
                file = self.get(name)
                assert file is not None
                return file
            free[spared.place.queue] += num_bytes
            self._place(name, spared, now)

    def _place(self, name: str, file: Ranked, now: int) -> None:
        self._connection.execute(
            "UPDATE files SET num_uses = ?, queue = ?, rank = ?, placed_at = ? WHERE name = ?",
            (file.num_uses, file.place.queue, file.place.rank, now, name),
        )

    def _stored_queues(self, queue: int) -> list[int]:
        """As files have them: one of the policy's own, and of its last those that another process's policy has beyond
        it."""
        if queue < self._policy.num_queues - 1:
            return [queue]
        found = self._connection.execute("SELECT DISTINCT queue FROM totals WHERE queue >= ?", (queue,))
        return [stored for (stored,) in found]

    def _free_bytes(self, owner: str | None) -> list[int]:
        """Bytes by queue of files that may be chosen."""
        free = [0] * self._policy.num_queues
        rows = self._connection.execute(
            "SELECT queue, sum(num_bytes) FROM totals"
            " WHERE kind = 'whole' AND pinned = 0 AND (?1 IS NULL OR owner = ?1) GROUP BY queue",
            (owner,),
        )
        for queue, num_bytes in rows.fetchall():
            free[min(queue, len(free) - 1)] += num_bytes
        return free

    def _remember(self, name: str) -> None:
        """Remember an evicted file until as many more have followed as there are left."""
        num_evicted = self._state("num_evicted") + 1
        self._set_state("num_evicted", num_evicted)
        until = num_evicted + self.totals().num_files
        self._connection.execute("INSERT OR REPLACE INTO remembered VALUES (?, ?)", (name, until))
        self._connection.execute("DELETE FROM remembered WHERE until <= ?", (num_evicted,))

    def _forget_evicted(self, name: str) -> bool:
        """Whether a file was evicted not long ago; it is remembered no more."""
        row = self._connection.execute("DELETE FROM remembered WHERE name = ? RETURNING until", (name,)).fetchone()
        return row is not None and row[0] > self._state("num_evicted")

    def _rows(self, condition: str, *values: object) -> Iterator[IndexedFile]:
        for row in self._connection.execute(f"SELECT {COLUMNS} FROM files {condition}", values).fetchall():
            name, kind, num_bytes, used_ns, num_uses, pinned, owner = row
            yield IndexedFile(name, kind, num_bytes, used_ns, num_uses, bool(pinned), owner)

    def _tick(self) -> int:
        """The logical clock: it never goes back, whatever the machine's does."""
        (now,) = self._connection.execute(
            "UPDATE state SET value = value + 1 WHERE name = 'clock' RETURNING value"
        ).fetchone()
        return int(now)
