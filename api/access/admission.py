"""How much of each kind of work is under way at a time."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from kvblend.api.access.shares import Shares
from kvblend.core.errors import TooManyRequestsError

__all__ = ["Admission", "Work"]

RETRY_AFTER_S = 1.0
MAX_UPLOADS = 32
"""A body of each is on its way into memory, or into a temporary file."""

Work = Literal["answer", "lookup", "upload"]
"""What vLLM or a blend answers; what is searched, tokenized or rendered; documents that are received."""


class Admission:
    """Counts work under way, and takes no more of a kind than so much, nor of a tenant than its share of it.

    Of one event loop.
    """

    def __init__(self, max_requests: int, shares: Shares) -> None:
        """`max_requests`: of answers, and as many of lookups beside them."""
        self._shares = shares
        self._most: dict[Work, int] = {"answer": max_requests, "lookup": max_requests, "upload": MAX_UPLOADS}
        self._taken: dict[Work, Counter[str]] = {work: Counter() for work in self._most}
        """By tenant."""

    @contextmanager
    def place(self, work: Work, tenant: str) -> Iterator[None]:
        """Hold a place while the block runs: until a streamed answer's last event. Raises TooManyRequestsError."""
        taken, held = self._taken[work], self._taken[work][tenant]
        if taken.total() >= self._most[work]:
            raise TooManyRequestsError(
                f"{taken.total()} {work}s are under way, as many as the service takes at a time",
                retry_after_s=RETRY_AFTER_S,
            )
        if held >= self._shares.places(tenant, self._most[work], None if work == "upload" else "max_requests"):
            raise TooManyRequestsError(
                f"{held} {work}s of the tenant {tenant!r} are under way, as many as it may have at a time",
                retry_after_s=RETRY_AFTER_S,
            )
        taken[tenant] += 1
        try:
            yield
        finally:
            taken[tenant] -= 1
            if not taken[tenant]:
                del taken[tenant]
