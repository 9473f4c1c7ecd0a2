"""How much of what all tenants use one of them may hold."""

from typing import Literal

from kvblend.api.access.key_ring import KeyRing

__all__ = ["Shares"]

OwnBound = Literal["max_requests", "max_jobs"]
"""A tenant's in the key file."""


class Shares:
    """Bounds of tenants: their own in the key file, or a share that leaves some for the others.

    Where there is but one tenant nobody else is kept out, and it may hold all.
    """

    def __init__(self, keys: KeyRing, *, share: float) -> None:
        self._keys, self._share = keys, share

    def places(self, tenant: str, num_places: int, own: OwnBound | None = None) -> int:
        """How many of so many a tenant may hold at a time, one at the least."""
        bound: int | None = None if own is None else getattr(self._keys.limits(tenant), own)
        if bound is None:
            bound = num_places if len(self._keys.tenants) == 1 else int(num_places * self._share)
        return min(num_places, max(1, bound))
