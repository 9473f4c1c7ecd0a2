"""What a host's tiers have for its peers."""

import logging
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.deadline import NEVER
from kvblend.store.folder.folder_tier import FolderTier
from kvblend.store.folder.passage_file import PassageKVFile
from kvblend.store.key import PassageKVKey, Variant

__all__ = ["ServedFiles"]

log = logging.getLogger(__name__)

FORGET_AFTER_S = 60.0


class ServedFiles:
    """Files of a host's folders, by name, nearest first. Safe from several threads.

    What a peer has deleted is not there for any peer for `FORGET_AFTER_S` seconds, even if it lies here again: else one
    that was copying it meanwhile would find it here, and keep its copy.
    """

    def __init__(self, tiers: Sequence[FolderTier], *, max_bytes: int) -> None:
        """`max_bytes`: larger files are not there for peers."""
        self._tiers, self._max_bytes = tiers, max_bytes
        self._deleted: dict[Variant, float] = {}

    def find(self, names: Collection[str]) -> list[str]:
        """Those that lie here."""
        left, found = self._keys(names), set[PassageKVKey]()
        for tier in self._tiers:
            there = tier.lookup_many(left, NEVER)
            found |= {key for key in there if _num_bytes(tier, key) <= self._max_bytes}
            left = [key for key in left if key not in found]
        return [key.file_name for key in found]

    def open(self, names: Collection[str]) -> dict[str, PassageKVFile]:
        """Open those that lie here, and mark them as used."""
        left, opened = self._keys(names), dict[str, PassageKVFile]()
        for tier in self._tiers:
            for key, file in tier.fetch_many(left, NEVER).items():
                if file.num_bytes <= self._max_bytes:
                    opened[key.file_name] = file
                else:
                    file.close()
            left = [key for key in left if key.file_name not in opened]
        return opened

    def variants(self, model_fingerprint: str, passage_id: str) -> list[str]:
        """The names of all files of a passage."""
        found = {key for tier in self._tiers for key in tier.variants(model_fingerprint, passage_id, NEVER)}
        return [key.file_name for key in found if not self._was_deleted(key)]

    def delete(self, variants: Collection[Variant]) -> int:
        """Delete every file of variants; returns how many there were."""
        self._forget_old()
        self._deleted.update(dict.fromkeys(variants, time.monotonic()))
        return sum(tier.delete(variants, NEVER) for tier in self._tiers)

    def check(self, names: Collection[str]) -> list[str]:
        """Read files through, and put aside those that are corrupt; returns these."""
        return [key.file_name for key in self._keys(names) if any([_put_aside(tier, key) for tier in self._tiers])]

    def close(self) -> None:
        for tier in self._tiers:
            tier.close()

    def _keys(self, names: Iterable[str]) -> list[PassageKVKey]:
        """What is a file's name and was not deleted just now."""
        keys = (PassageKVKey.from_file_name(name) for name in dict.fromkeys(names))
        return [key for key in keys if key is not None and not self._was_deleted(key)]

    def _was_deleted(self, key: PassageKVKey) -> bool:
        at = self._deleted.get(key.variant)
        return at is not None and time.monotonic() < at + FORGET_AFTER_S

    def _forget_old(self) -> None:
        oldest = time.monotonic() - FORGET_AFTER_S
        self._deleted = {variant: at for variant, at in self._deleted.items() if at >= oldest}


def _num_bytes(tier: FolderTier, key: PassageKVKey) -> float:
    with suppress(OSError):
        return (tier.root / key.file_name).lstat().st_size
    return float("inf")  # gone meanwhile


def _put_aside(tier: FolderTier, key: PassageKVKey) -> bool:
    file = tier.fetch_many([key], NEVER).get(key)
    if file is None:
        return False
    with file:
        try:
            for _ in file.extents():
                pass
        except CorruptPassageKVError:
            return file.quarantine()
    return False
