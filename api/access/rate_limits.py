"""How often a tenant may ask."""

import time
from collections.abc import Callable

from kvblend.core.errors import RateLimitedError

__all__ = ["RateLimits"]


class RateLimits:
    """A bucket for each tenant that holds a minute's requests, and is filled again evenly. Of one event loop."""

    def __init__(self, per_minute: Callable[[str], int | None], *, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_minute`: how many requests a tenant may send in a minute; None: as many as it likes. It may change."""
        self._per_minute, self._clock = per_minute, clock
        self._left: dict[str, tuple[float, float]] = {}
        """By tenant how many requests it had left, and when."""

    def take(self, tenant: str) -> None:
        """Count a request. Raises RateLimitedError, which says when the next one may come; that one is not counted."""
        most = self._per_minute(tenant)
        if most is None:
            self._left.pop(tenant, None)
            return
        now = self._clock()
        left, since = self._left.get(tenant, (float(most), now))
        left = min(float(most), left + (now - since) * most / 60)
        if left < 1:
            self._left[tenant] = left, now
            raise RateLimitedError(
                f"the tenant {tenant!r} may send {most} requests a minute", retry_after_s=(1 - left) * 60 / most
            )
        self._left[tenant] = left - 1, now
