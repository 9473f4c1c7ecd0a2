"""Quotas: how many bytes of a tier an owner may have."""

from collections.abc import Mapping

from kvblend.core.errors import StoreFullError

__all__ = ["bytes_over_quota"]


def bytes_over_quota(
    owner: str, num_bytes: int, *, owned_bytes: Mapping[str, int], quota_bytes: Mapping[str, int]
) -> int:
    """How many bytes of `owner`'s own files must go before it may put a file of `num_bytes`.

    They are never more than it owns. Who has no quota may put whatever the tier's budget allows. Raises StoreFullError
    where the file alone is over the quota.
    """
    quota = quota_bytes.get(owner)
    if quota is None:
        return 0
    if num_bytes > quota:
        raise StoreFullError(f"{num_bytes} bytes of one passage KV are over the quota of {owner!r}, {quota} bytes")
    return max(0, owned_bytes.get(owner, 0) + num_bytes - quota)
