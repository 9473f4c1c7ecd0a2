"""The store: ordered tiers, fastest first."""

import logging
from itertools import pairwise
from types import TracebackType
from typing import Self

import torch

from kvblend.core.errors import CorruptPassageKVError, InvalidRequestError, StoreFullError
from kvblend.core.rest import TierStats
from kvblend.core.settings import Settings
from kvblend.store.content import CopiedContent, TensorContent
from kvblend.store.gpu.gpu_tier import GPUTier
from kvblend.store.held_pins import HeldPins
from kvblend.store.key import PassageKVKey
from kvblend.store.open_passage import OpenPassageKV
from kvblend.store.placement import tiers_of
from kvblend.store.tier import Tier, VerifyReport

__all__ = ["TieredStore"]

log = logging.getLogger(__name__)


class TieredStore:
    """Passage KV in ordered tiers, fastest first. Safe from several threads and processes at once.

    A passage KV may lie in several tiers; it is opened from the fastest. What a tier evicts moves to the
    next slower one. A miss is None or False, never an error.

    A GPU tier is one process's own, in front of the tiers that all share, and holds copies alone: what it evicts
    is dropped, and what no shared tier has any more, since another process deleted it or it was evicted there, is a
    miss. Else a deleted passage could be served, or come back.
    """

    def __init__(self, tiers: list[Tier], *, gpu: GPUTier | None = None) -> None:
        if not tiers:
            raise InvalidRequestError("a store needs at least one tier; none was given")
        self.gpu = gpu
        self._shared = tuple(tiers)
        self.tiers: tuple[Tier, ...] = self._shared if gpu is None else (gpu, *self._shared)
        for faster, slower in pairwise(self._shared):
            faster.slower = slower
        self._pins = HeldPins()

    @classmethod
    def from_settings(cls, settings: Settings, device: torch.device | str | None = None) -> Self:
        """Open the CPU and disk tiers that `settings` ask for and, for a worker on `device`, the GPU tier.

        Raises InvalidRequestError where a path is relative, cannot be written or lies within the other tier's,
        where no tier is left, or where the device has no room.
        """
        tiers = tiers_of(settings)
        if device is None or settings.gpu_bytes == 0:
            return cls(tiers)
        return cls(tiers, gpu=GPUTier(device, budget_bytes=settings.gpu_bytes))

    def put(self, key: PassageKVKey, kv: torch.Tensor, *, capture_position: int) -> str:
        """Store a passage's KV; on return it is whole, and survives a crash as far as its tier does.

        kv: [num_layers, 2, num_tokens, num_kv_heads, head_dim], bfloat16, float16 or float32, on any device.
        It goes to the fastest shared tier that can make room. What lies there already under `key` is kept, since a
        key names its content, and marked as used now. Returns the tier's name.

        Raises StoreFullError where no tier can make room or be written, InvalidRequestError where `kv` does not
        fit the key.
        """
        content = TensorContent(key, kv, capture_position=capture_position)
        found = self.open(key)
        if found is not None:
            with found:
                return found.tier
        reasons = []
        for tier in self._shared:
            try:
                tier.put(content)
            except StoreFullError as error:
                reasons.append(error.message)
            except OSError as error:
                log.warning("the %s tier cannot be written: %s", tier.name, error)
                reasons.append(f"the {tier.name} tier cannot be written: {error}")
            else:
                return tier.name
        raise StoreFullError("; ".join(reasons))

    def open(self, key: PassageKVKey) -> OpenPassageKV | None:
        """Open from the fastest tier that has it, and mark it as used; None where no shared tier has it.

        The file stays readable until it is closed, whatever is evicted or deleted meanwhile. One whose
        header fails its check is quarantined and passed over.
        """
        if self.gpu is not None:
            copy = self.gpu.open(key)
            if copy is not None:
                if any(tier.touch(key) for tier in self._shared):
                    return copy
                copy.close()
                self.gpu.drop(key)
        for tier in self._shared:
            file = tier.open(key)
            if file is not None:
                return file
        return None

    def quarantine(self, file: OpenPassageKV) -> None:
        """Put aside a file whose `read` raised CorruptPassageKVError. One warning is logged."""
        for tier in self.tiers:
            if tier.name == file.tier:
                tier.quarantine(file)

    def lookup(self, key: PassageKVKey) -> str | None:
        """The fastest tier that has a file for `key`, by name; it is not opened."""
        found = next((tier.name for tier in self._shared if tier.contains(key)), None)
        return self.gpu.name if found is not None and self.gpu is not None and self.gpu.contains(key) else found

    def delete(self, *, model_fingerprint: str, encode_context: str, passage_id: str) -> int:
        """Delete every head range of a passage KV from all tiers, pinned or not; returns the number of files."""
        num_deleted = 0
        while True:  # once more after a file was found: it may have been on its way between two tiers
            num_files = sum(
                tier.delete(model_fingerprint=model_fingerprint, encode_context=encode_context, passage_id=passage_id)
                for tier in self.tiers
            )
            if num_files == 0:
                break
            num_deleted += num_files
        self._pins.drop_gone()
        return num_deleted

    def pin(self, key: PassageKVKey) -> bool:
        """Keep a passage KV from eviction until `unpin` or this process's end; False where no tier has it.

        It is pinned in the fastest shared tier that has it; other processes' pins count too. Idempotent.
        """
        return self._pins.take(key, self._shared)

    def unpin(self, key: PassageKVKey) -> bool:
        """Drop this store's pin; False where it holds none."""
        return self._pins.drop(key)

    def promote(self, key: PassageKVKey) -> bool:
        """Copy to the next faster tier than the fastest that has it; False where none has it or it does not fit."""
        for faster, tier in pairwise(self.tiers):
            if faster.contains(key):
                return False
            file = tier.open(key)
            if file is None:
                continue
            with file:
                try:
                    faster.put(CopiedContent(file))
                except StoreFullError:
                    return False
                except OSError as error:
                    log.warning("the %s tier cannot be written: %s", faster.name, error)
                    return False
                except CorruptPassageKVError:
                    tier.quarantine(file)
                    return False
            if not tier.contains(key):  # deleted meanwhile, and the copy with it
                faster.delete(
                    model_fingerprint=key.model_fingerprint,
                    encode_context=key.encode_context,
                    passage_id=key.passage_id,
                )
                return False
            return True
        return False

    def demote(self, key: PassageKVKey) -> bool:
        """Move from the fastest tier that has it to the next slower one; the faster copy is gone then.

        False where no tier has it, it is in the slowest, it is pinned, or it does not fit. A copy in the GPU tier
        is dropped: it lies in a slower one.
        """
        if self.gpu is not None and self.gpu.contains(key):
            return self.gpu.drop(key) and self.lookup(key) is not None
        for tier in self._shared:
            if tier.contains(key):
                return tier.demote(key)
        return False

    def evict(self, tier: str, num_bytes: int) -> int:
        """Demote or drop the least recently used files of `tier` until `num_bytes` are freed; returns bytes freed.

        Raises StoreFullError where pins hold too much, InvalidRequestError where no tier has that name.
        """
        for candidate in self.tiers:
            if candidate.name == tier:
                return candidate.evict(num_bytes)
        names = ", ".join(candidate.name for candidate in self.tiers)
        raise InvalidRequestError(f"no tier is named {tier!r}; there are: {names}", param="tier")

    def verify(self) -> VerifyReport:
        """Read and check everything; quarantine what is bad and remove what dead writers left."""
        total = VerifyReport()
        for tier in self.tiers:
            report = tier.verify()
            total.num_files += report.num_files
            total.num_bytes += report.num_bytes
            total.quarantined += tuple(f"{tier.name}:{name}" for name in report.quarantined)
            total.num_temporary_removed += report.num_temporary_removed
        return total

    def stats(self) -> list[TierStats]:
        """Count what lies in each tier now, fastest first."""
        return [tier.stats() for tier in self.tiers]

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant of a tier is broken: for tests."""
        for tier in self.tiers:
            tier.check_integrity()

    def close(self) -> None:
        """Release this store's pins and what its tiers hold. Files stay on the tiers; close open ones first."""
        self._pins.drop_all()
        for tier in self.tiers:
            tier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
