"""What keeps a store within its limits: quotas, what is idle, files encoded anew in place."""

from collections.abc import Collection, Mapping

from kvblend.core.errors import CorruptPassageKVError
from kvblend.core.settings import CodecName
from kvblend.store.codecs import codec_spec
from kvblend.store.content import TensorContent
from kvblend.store.deadline import NEVER
from kvblend.store.key import PassageKVKey, Variant
from kvblend.store.tier import Tier
from kvblend.store.tiered import TieredStore

__all__ = ["compress", "idle", "owners_of", "trim"]


def owners_of(store: TieredStore) -> set[str]:
    """Whoever owns something in a bounded tier."""
    return {owner for tier in store.bounded for owner in tier.owned_bytes()}


def trim(store: TieredStore, owners: Collection[str], max_bytes: int) -> int:
    """Evict from every bounded tier in which owners have more than `max_bytes` together; returns bytes freed.

    Whoever has the most gives first. What is evicted of a faster tier moves to the slower one, as always. Pinned files
    stay.
    """
    freed = 0
    for tier in store.bounded:
        owned = {owner: num_bytes for owner, num_bytes in tier.owned_bytes().items() if owner in owners}
        over = sum(owned.values()) - max_bytes
        for owner in sorted(owned, key=owned.__getitem__, reverse=True):
            if over > 0:
                evicted = tier.evict(over, owner=owner)
                freed, over = freed + evicted, over - evicted
    return freed


def idle(store: TieredStore, before_ns: Mapping[str, int]) -> dict[str, set[Variant]]:
    """What of an owner's no tier has seen used since its time, and none has pinned. It reads every entry.

    before_ns: by owner, nanoseconds since the epoch.
    """
    used: set[Variant] = set()
    unused: dict[str, set[Variant]] = {owner: set() for owner in before_ns}
    for tier in store.bounded:
        for entry in tier.all_entries():
            limit = before_ns.get(entry.owner)
            if limit is not None:
                is_used = entry.pinned or entry.used_ns >= limit
                (used if is_used else unused[entry.owner]).add(entry.key.variant)
    return {owner: variants - used for owner, variants in unused.items()}


def compress(store: TieredStore, variants: Collection[Variant], codec: CodecName) -> tuple[int, int]:
    """Encode raw files of bounded tiers by `codec`, in place, where that makes them smaller.

    Files of other codecs stay as they are: numbers are rounded once, not twice. A corrupt one is quarantined.
    Returns the number of files and the bytes saved. Raises StoreFullError where a tier has no room to write.
    """
    num_files = saved = 0
    for tier in store.bounded:
        for entry in tier.described(variants):
            content = _encoded(tier, entry.key, codec)
            if content is not None and content.num_bytes < entry.num_bytes and tier.replace(content):
                num_files += 1
                saved += entry.num_bytes - content.num_bytes
    return num_files, saved


def _encoded(tier: Tier, key: PassageKVKey, codec: CodecName) -> TensorContent | None:
    """A raw file's numbers by another codec; None where it is gone, corrupt, or by another codec already."""
    file = tier.fetch_many([key], NEVER).get(key)
    if file is None:
        return None
    with file:
        header = file.header
        if not header.is_raw or not header.capture_position:  # the attention sink stays as it is
            return None
        try:
            kv = file.read()
        except CorruptPassageKVError:
            file.quarantine()
            return None
        return TensorContent(
            key,
            kv,
            capture_position=header.capture_position,
            owners=header.owners,
            codec=codec_spec(codec, kv.shape[-1]),
        )
