"""A range of KV heads put together from files of other ranges: what one tensor-parallel size wrote, another reads."""

import logging
from collections.abc import Collection, Sequence
from contextlib import ExitStack

import torch

from kvblend.core.errors import CorruptPassageKVError
from kvblend.store.codecs import CodecSpec
from kvblend.store.deadline import Deadline
from kvblend.store.format import LayerEntry, PassageKVHeader
from kvblend.store.key import PassageKVKey
from kvblend.store.stored_passage import StoredPassageKV
from kvblend.store.tier import Tier

__all__ = ["JoinedHeads", "join", "parts_of"]

log = logging.getLogger(__name__)

UNCHECKED = "0" * 16


def cover(key: PassageKVKey, there: Collection[PassageKVKey]) -> list[PassageKVKey] | None:
    """The fewest files of `key`'s variant that have all of its heads, in their order; None where some are missing."""
    ranges = [own for own in there if own.variant == key.variant]
    parts, start = list[PassageKVKey](), key.head_start
    while start < key.head_end:
        reaching = [own for own in ranges if own.head_start <= start < own.head_end]
        if not reaching:
            return None
        best = max(reaching, key=lambda own: own.head_end)
        parts.append(best)
        start = best.head_end
    return parts


def parts_of(key: PassageKVKey, tiers: Sequence[Tier], deadline: Deadline) -> list[tuple[PassageKVKey, Tier]]:
    """Files of other head ranges that have all heads of `key`, each where it is nearest; empty if some lack."""
    where: dict[PassageKVKey, Tier] = {}
    for tier in reversed(tiers):
        there = tier.variants(key.model_fingerprint, key.passage_id, deadline)
        where.update(dict.fromkeys(there, tier))
    return [(part, where[part]) for part in cover(key, where) or ()]


def join(key: PassageKVKey, tiers: Sequence[Tier], deadline: Deadline) -> "JoinedHeads | None":
    """Open what `parts_of` finds; None where that is nothing, or a part cannot be opened."""
    files: list[StoredPassageKV] = []
    for part, tier in parts_of(key, tiers, deadline):
        file = tier.fetch_many([part], deadline).get(part)
        if file is None:
            for opened in files:
                opened.close()
            return None
        files.append(file)
    if not files:
        return None
    try:
        return JoinedHeads(key, files)
    except CorruptPassageKVError as error:
        log.warning("passage KV %s cannot be put together: %s", key.file_name, error)
        return None


class JoinedHeads(StoredPassageKV):
    """The heads of `key` out of open files that cover them; they are this one's to close.

    Raises CorruptPassageKVError where they do not agree on what they are; then they are closed.
    """

    def __init__(self, key: PassageKVKey, parts: Sequence[StoredPassageKV]) -> None:
        self._parts = list(parts)
        self.tier = parts[0].tier
        first = parts[0].header
        for part in parts[1:]:
            if _kind(part.header) != _kind(first):
                self.close()
                raise CorruptPassageKVError(f"{part.header.key.file_name} is not of the kind of {first.key.file_name}")
        num_layers, _, num_tokens, _, head_dim = first.shape
        num_heads = key.head_end - key.head_start
        layer_bytes = 2 * num_tokens * num_heads * head_dim * first.torch_dtype.itemsize
        self.header = PassageKVHeader(
            model_fingerprint=key.model_fingerprint,
            encode_context=key.encode_context,
            passage_id=key.passage_id,
            head_start=key.head_start,
            head_end=key.head_end,
            dtype=first.dtype,
            shape=(num_layers, 2, num_tokens, num_heads, head_dim),
            capture_position=first.capture_position,
            owners=first.owners,
            codec=CodecSpec(),
            layers=(LayerEntry(stored_bytes=layer_bytes, checksum=UNCHECKED),) * num_layers,
        )

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self._parts)

    def read_extent(self, layer: int, extent: memoryview) -> None:
        whole = torch.frombuffer(extent, dtype=torch.uint8)
        whole[self.header.layer_bytes :].zero_()
        out = whole[: self.header.layer_bytes].view(self.header.torch_dtype).view(self.header.layer_shape)
        at = self.header.head_start
        for part in self._parts:  # each checks what it reads
            end = min(part.header.head_end, self.header.head_end)
            heads = part.read_layer(layer)[:, :, at - part.header.head_start : end - part.header.head_start]
            out[:, :, at - self.header.head_start : end - self.header.head_start] = heads
            at = end

    def quarantine(self) -> bool:
        """Put aside those parts that are not sound; which one failed is found by reading them."""
        return any([part.quarantine() for part in self._parts if not _is_sound(part)])

    def close(self) -> None:
        with ExitStack() as closing:
            for part in self._parts:
                closing.callback(part.close)


def _kind(header: PassageKVHeader) -> tuple[object, ...]:
    return header.dtype, header.shape[:3], header.head_dim, header.capture_position


def _is_sound(part: StoredPassageKV) -> bool:
    try:
        for _ in part.extents():
            pass
    except CorruptPassageKVError:
        return False
    return True
