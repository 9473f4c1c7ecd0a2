"""The store: ordered tiers, fastest first."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Self

import torch

from kvblend.core.errors import InvalidRequestError
from kvblend.core.rest import TierStats
from kvblend.core.settings import CodecName, Settings, WritePolicy
from kvblend.store.codecs import codec_spec
from kvblend.store.content import TensorContent
from kvblend.store.deadline import NEVER, Deadline
from kvblend.store.eviction import policy_of
from kvblend.store.gpu.gpu_tier import GPUTier
from kvblend.store.joined_heads import join, parts_of
from kvblend.store.key import PassageKVKey, Variant
from kvblend.store.open_passage import OpenPassageKV
from kvblend.store.peers import HostProcess, PeerTier, peer_addresses
from kvblend.store.placement import tiers_of
from kvblend.store.remote import remote_tiers
from kvblend.store.stored_passage import StoredPassageKV
from kvblend.store.tier import BoundedTier, Tier, VerifyReport
from kvblend.store.tier_counts import OpCounts, TierCounts, TierOp
from kvblend.store.writer import StoreWriter

__all__ = ["TieredStore"]

log = logging.getLogger(__name__)

Fetched = Callable[[str, OpCounts], None]
"""Is told a tier's name, and what came of a fetch there."""


class TieredStore:
    """Passage KV in ordered tiers, fastest first. Safe from several threads and processes at once.

    A passage KV may lie in several tiers; it is opened from the fastest. What a bounded tier evicts moves to the
    next slower one, where it does not lie there. A miss is left out, never an error.

    A GPU tier is one process's own, in front of the tiers that all share, and holds copies alone: what no shared tier
    has any more, since another process deleted it or it was evicted there, is a miss. Else a deleted passage could be
    served, or come back.
    """

    def __init__(
        self,
        tiers: Sequence[BoundedTier],
        *,
        remotes: Sequence[Tier] = (),
        gpu: GPUTier | None = None,
        write: WritePolicy = "disk",
        codec: CodecName = "raw",
        peer_process: HostProcess | None = None,
    ) -> None:
        """`write`: where a passage KV must lie before a put returns (docs/settings.md, KVBLEND_WRITE). `peer_process`
        lives as long as the store is open."""
        if not tiers:
            raise InvalidRequestError("a store needs at least one tier; none was given")
        self.gpu, self.bounded, self.remotes = gpu, tuple(tiers), tuple(remotes)
        self.shared: tuple[Tier, ...] = (*tiers, *remotes)
        for faster, slower in pairwise(self.bounded):
            faster.slower = slower
        self._codec, self._peer_process = codec, peer_process
        self.counts = TierCounts()
        self._failures: dict[str, int] = {}
        self._writer = StoreWriter(self.bounded, self.remotes, write, self.counts)

    @classmethod
    def from_settings(cls, settings: Settings, device: torch.device | str | None = None) -> Self:
        """Open the tiers that `settings` ask for and, for a worker on `device`, the GPU tier.

        Raises InvalidRequestError where a path is relative, cannot be written or lies within the other tier's,
        where no tier is left, where the device has no room, for a remote tier's URL that is none, or where the host's
        peer process cannot be started.
        """
        with ExitStack() as closing:
            tiers = tiers_of(settings)
            for tier in tiers:
                closing.callback(tier.close)
            gpu = None
            if device is not None and settings.gpu_bytes:
                gpu = GPUTier(device, budget_bytes=settings.gpu_bytes, policy=policy_of(settings.eviction))
                closing.callback(gpu.close)
            process, addresses = HostProcess.of(settings), peer_addresses(settings)
            if process is not None:
                closing.callback(process.close)
            peers = PeerTier(process, addresses) if process is not None and addresses else None
            store = cls(
                tiers,
                remotes=remote_tiers(settings, peers),
                gpu=gpu,
                write=settings.write,
                codec=settings.codec,
                peer_process=process,
            )
            closing.pop_all()  # they are the store's to close
            return store

    def put(self, key: PassageKVKey, kv: torch.Tensor, *, capture_position: int, owners: Sequence[str] = ()) -> str:
        """Store a passage's KV; on return it lies where the write policy says that it must.

        kv: [num_layers, 2, num_tokens, num_kv_heads, head_dim], bfloat16, float16 or float32, on any device.
        What lies there already under `key` is kept, since a key names its content, and marked as used now.
        Returns the name of the tier where it lasts.

        Raises StoreFullError where that tier cannot make room or be written, InvalidRequestError where `kv` does not
        fit the key.
        """
        # What begins at position 0 has the attention sink, whose outliers take the precision from the tokens beside it,
        # and no blend recomputes it: it is stored as it is.
        codec = codec_spec(self._codec if capture_position else "raw", kv.shape[-1])
        content = TensorContent(key, kv, capture_position=capture_position, owners=owners, codec=codec)
        return self._writer.put(content)

    def claim(
        self, variant: Variant, *, seconds: float = 60.0, deadline: Deadline = NEVER
    ) -> Callable[[], None] | None:
        """Claim the encode of a passage among all processes and hosts that share a tier; None where another has it.

        Call what it returns when the encode is over. It ends by itself when the process does, or after `seconds` for
        those who share a remote tier alone. A place that does not answer by the deadline keeps nobody from it.
        """
        with ExitStack() as given:
            for tier in (self.bounded[-1], *self.remotes):
                own = tier.claim(variant, seconds, deadline)
                if own is None:
                    return None
                given.callback(own)
            return given.pop_all().close

    def take_counts(self) -> Mapping[tuple[str, TierOp], OpCounts]:
        """What was asked of the tiers since the last call, and what came of it; what was late has failed.

        For one caller: a remote tier's failures of lookups count as those of fetches.
        """
        counts = dict(self.counts.take())
        for remote in self.remotes:
            num_failures = remote.num_failures - self._failures.get(remote.name, 0)
            if num_failures:
                counts.setdefault((remote.name, "fetch"), OpCounts()).num_failures += num_failures
                self._failures[remote.name] = remote.num_failures
        return counts

    def open_many(
        self,
        keys: Collection[PassageKVKey],
        deadline: Deadline = NEVER,
        *,
        passing_over: Collection[str] = (),
        fetched: Fetched = lambda tier, counts: None,
    ) -> Mapping[PassageKVKey, OpenPassageKV]:
        """Open each from the fastest tier that has it, and mark it as used; what is nowhere, or late, is left out.

        Tiers whose names are in `passing_over` are not looked at. A file stays readable until it is closed, whatever is
        evicted or deleted meanwhile. One whose header fails its check is quarantined and passed over. Heads that lie in
        files of other ranges are put together. `fetched` is told of each tier that was asked, and what came of it.
        """
        opened: dict[PassageKVKey, OpenPassageKV] = dict(self._open_on_device(keys, deadline, fetched))
        shared = [tier for tier in self.shared if tier.name not in passing_over]
        for tier in shared:
            missing = [key for key in keys if key not in opened]
            if not missing:
                break
            files = self._fetched(tier, missing, deadline, fetched)
            opened.update(files)
            if tier in self.remotes:
                for file in files.values():
                    self._writer.keep_near(file, tier)
        for key in keys:
            if key not in opened and (joined := join(key, shared, deadline)) is not None:
                opened[key] = joined
        return opened

    def lookup_many(self, keys: Collection[PassageKVKey], deadline: Deadline = NEVER) -> Mapping[PassageKVKey, str]:
        """The fastest tier that has each, by name; none is opened."""
        found: dict[PassageKVKey, str] = {}
        for tier in self.shared:
            missing = [key for key in keys if key not in found]
            if not missing:
                break
            with self.counts.of(tier.name, "lookup", len(missing)) as counted:
                there = tier.lookup_many(missing, deadline)
                counted.num_hits = len(there)
            for key in there:
                found[key] = self.gpu.name if self.gpu is not None and self.gpu.contains(key) else tier.name
        for key in keys:
            if key not in found and (parts := parts_of(key, self.shared, deadline)):
                found[key] = parts[0][1].name
        return found

    def held_many(self, keys: Collection[PassageKVKey]) -> set[PassageKVKey]:
        """Those that lie in tiers of this host: no other is asked, and nothing is counted."""
        held: set[PassageKVKey] = set()
        for tier in self.bounded:
            held |= tier.lookup_many([key for key in keys if key not in held], NEVER)
        return held

    @property
    def places(self) -> list[str]:
        """Of the tiers of this host, fastest first."""
        return [tier.place for tier in self.bounded]

    def committed_many(self, keys: Collection[PassageKVKey], deadline: Deadline = NEVER) -> set[PassageKVKey]:
        """Those that lie where the write policy says that they must last."""
        committed = set(keys)
        for tiers in self._writer.lasting_in:
            committed &= {key for tier in tiers for key in tier.lookup_many(committed, deadline)}
        return committed

    def delete(self, variants: Collection[Variant], deadline: Deadline = NEVER) -> int:
        """Delete every head range of passage KV from all tiers, pinned or not; returns the number of files.

        Raises OSError where a tier does not answer in time, once the others have deleted theirs.
        """
        self._writer.drain()  # what is on its way to a tier is there, and is deleted
        if self.gpu is not None:
            self.gpu.delete(variants)
        num_deleted, failures = 0, list[OSError]()
        while True:  # once more after a file was found: it may have been on its way between two tiers
            num_files = 0
            for tier in self.shared:
                try:
                    num_files += tier.delete(variants, deadline)
                except OSError as error:
                    failures.append(error)
            num_deleted += num_files
            if num_files == 0 or failures:
                break
        if failures:
            raise failures[0]
        return num_deleted

    def pin(self, variants: Collection[Variant], *, pinned: bool = True) -> int:
        """Keep passage KV from eviction until it is unpinned, in every bounded tier that has it; returns the files."""
        return sum(tier.pin(variants, pinned=pinned) for tier in self.bounded)

    def promote_many(self, keys: Collection[PassageKVKey], deadline: Deadline = NEVER) -> set[PassageKVKey]:
        """Copy what does not lie in the fastest bounded tier there; returns what lies there now."""
        fastest = self.bounded[0]
        there = fastest.lookup_many(keys, deadline)
        for tier in self.shared[1:]:
            missing = [key for key in dict.fromkeys(keys) if key not in there]
            for key, file in self._fetched(tier, missing, deadline).items():
                with file:
                    copy = self._writer.copy_into(fastest, file)
                    if copy == "was there" or (copy == "copied" and not self._was_deleted(key, tier, fastest)):
                        there.add(key)
        return there

    def prefetch(self, found: Mapping[PassageKVKey, str], far: Collection[str] | None = None) -> None:
        """Begin to copy what a lookup `found` in `far` tiers alone to the fastest bounded one; returns at once.

        `far`: names of tiers; by default the remote ones.
        """
        far = {tier.name for tier in self.remotes} if far is None else far
        for key, name in found.items():
            if name in far and name != self.bounded[0].name:
                self._writer.later(f"prefetch of {key.file_name}", partial(self.promote_many, [key]))

    def move_down(self, keys: Collection[PassageKVKey]) -> set[PassageKVKey]:
        """Move from the fastest tier that has it to the next slower one; returns what moved.

        Not what is in the slowest, is pinned, or does not fit. A copy in the GPU tier goes, too.
        """
        moved: set[PassageKVKey] = set()
        for tier in self.bounded[:-1]:
            moved |= tier.move_down([key for key in keys if key not in moved])
        if self.gpu is not None:
            for key in moved:
                self.gpu.drop(key)
        return moved

    def evict(self, tier: str, num_bytes: int) -> int:
        """Evict from `tier` until `num_bytes` are freed; returns bytes freed.

        Raises StoreFullError where pins hold too much, InvalidRequestError where no tier has that name.
        """
        for candidate in self._evicting:
            if candidate.name == tier:
                return candidate.evict(num_bytes)
        names = ", ".join(candidate.name for candidate in self._evicting)
        raise InvalidRequestError(f"no tier is named {tier!r}; there are: {names}", param="tier")

    def verify(self) -> VerifyReport:
        """Read and check everything; quarantine what is bad and remove what dead writers left."""
        total = VerifyReport()
        for tier in self.bounded:
            report = tier.verify()
            total.num_files += report.num_files
            total.num_bytes += report.num_bytes
            total.quarantined += tuple(f"{tier.name}:{name}" for name in report.quarantined)
            total.num_temporary_removed += report.num_temporary_removed
        return total

    def stats(self) -> list[TierStats]:
        """What lies in each tier now, fastest first."""
        return [tier.stats() for tier in self._all]

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant of a tier is broken: for tests."""
        for tier in self._evicting:
            tier.check_integrity()

    def close(self) -> None:
        """Finish what is being copied, and release what the tiers hold. Files stay; close open ones first."""
        self._writer.close()
        for tier in self._all:
            tier.close()
        if self._peer_process is not None:
            self._peer_process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _all(self) -> list[GPUTier | Tier]:
        return [*([] if self.gpu is None else [self.gpu]), *self.shared]

    @property
    def _evicting(self) -> list[GPUTier | BoundedTier]:
        return [*([] if self.gpu is None else [self.gpu]), *self.bounded]

    def _fetched(
        self, tier: Tier, keys: Collection[PassageKVKey], deadline: Deadline, tell: Fetched = lambda tier, counts: None
    ) -> Mapping[PassageKVKey, StoredPassageKV]:
        with self.counts.of(tier.name, "fetch", len(keys)) as counted:
            files = tier.fetch_many(keys, deadline)
            counted.num_hits, counted.num_bytes = len(files), sum(file.num_bytes for file in files.values())
        tell(tier.name, counted)
        return files

    def _open_on_device(
        self, keys: Collection[PassageKVKey], deadline: Deadline, tell: Fetched
    ) -> Mapping[PassageKVKey, OpenPassageKV]:
        """Copies in the GPU tier of what a shared tier has; the others are dropped."""
        if self.gpu is None:
            return {}
        with self.counts.of(self.gpu.name, "fetch", len(keys)) as counted:
            copies = {key: copy for key in keys if (copy := self.gpu.open(key)) is not None}
            counted.num_hits, counted.num_bytes = len(copies), sum(copy.num_bytes for copy in copies.values())
        tell(self.gpu.name, counted)
        used: set[PassageKVKey] = set()
        for tier in self.bounded:
            used |= tier.touch_many([key for key in copies if key not in used])
        for remote in self.remotes:
            used |= remote.lookup_many([key for key in copies if key not in used], deadline)
        for key in copies.keys() - used:
            copies.pop(key).close()
            self.gpu.drop(key)
        return copies

    def _was_deleted(self, key: PassageKVKey, source: Tier, copied_to: Tier) -> bool:
        """Whether a file was deleted while it was copied: then its copy is deleted, too."""
        if source.lookup_many([key], NEVER):
            return False
        copied_to.delete([key.variant], NEVER)
        return True
