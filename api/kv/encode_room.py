"""Which passages of an ingest are encoded at once: as many as the setting and the store have room for."""

from collections.abc import Sequence
from itertools import accumulate

from kvblend.api.kv.passage_kv import PassageKV
from kvblend.core.control import EngineInfo
from kvblend.core.settings import EncodePolicy

__all__ = ["EncodeRoom"]


class EncodeRoom:
    """`eager`: as many as the tier in which passage KV lasts can hold at all; older KV makes room for them. `lazy`:
    none. A number: as many as bring what lies there to so many bytes. The others are encoded when they are first used.
    """

    def __init__(self, policy: EncodePolicy, passage_kv: PassageKV) -> None:
        self._policy, self._passage_kv = policy, passage_kv

    @property
    def is_lazy(self) -> bool:
        return self._policy == "lazy"

    async def fitting(
        self, num_tokens: Sequence[int], info: EngineInfo | None, *, quota_bytes: int | None = None
    ) -> tuple[int, str | None]:
        """How many of the passages, from the first on, are to be encoded, and why not all, if they are not.

        num_tokens: of each passage. `quota_bytes`: what their collection may have, or has left. Bytes are
        reckoned by what the engine's codec takes as a rule.
        """
        if self.is_lazy:
            return 0, None
        if info is None:
            return len(num_tokens), None  # whoever encodes them finds out
        tier = [tier for tier in await self._passage_kv.stats() if tier.budget_bytes][-1]
        room = tier.budget_bytes if self._policy == "eager" else int(self._policy) - tier.used_bytes
        bound = (
            f"the {tier.name} tier holds {tier.budget_bytes}"
            if self._policy == "eager"
            else f"KVBLEND_ENCODE leaves {max(0, room)}"
        )
        if quota_bytes is not None and quota_bytes < room:
            room, bound = quota_bytes, f"the collection's quota leaves {max(0, quota_bytes)}"
        ends = list(accumulate(count * info.token_bytes for count in num_tokens))
        count = sum(end <= room for end in ends)
        if count == len(num_tokens):
            return count, None
        return count, (
            f"{len(num_tokens) - count} of {len(num_tokens)} passages are encoded when they are first used: all take "
            f"about {ends[-1]} bytes of KV, and {bound}"
        )
