"""Room in memory for documents on their way in."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from kvblend.api.access.shares import Shares
from kvblend.core.errors import OverloadedError

__all__ = ["UploadRoom"]

MAX_WAITING_BYTES = 1 << 30
"""One upload may be larger, alone."""


class UploadRoom:
    """Counts the bytes of documents from before they are read into memory until they are parsed, of all and of each
    tenant. Of one event loop."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._num_bytes = Counter[str]()
        """By tenant."""

    @contextmanager
    def taken(self, num_bytes: int, tenant: str) -> Iterator[None]:
        """Take room, which is given back at once where the block fails. Raises OverloadedError where there is none."""
        _require(self._num_bytes.total(), num_bytes, MAX_WAITING_BYTES, whose="")
        own_most = self._shares.places(tenant, MAX_WAITING_BYTES)
        _require(self._num_bytes[tenant], num_bytes, own_most, whose=f" of the tenant {tenant!r}")
        self.hold(num_bytes, tenant)
        try:
            yield
        except BaseException:
            self.give(num_bytes, tenant)
            raise

    def hold(self, num_bytes: int, tenant: str) -> None:
        """Count what was accepted before."""
        self._num_bytes[tenant] += num_bytes

    def give(self, num_bytes: int, tenant: str) -> None:
        """Give room back."""
        self._num_bytes[tenant] -= num_bytes
        if not self._num_bytes[tenant]:
            del self._num_bytes[tenant]


def _require(num_waiting: int, num_more: int, most: int, *, whose: str) -> None:
    if num_waiting and num_waiting + num_more > most:
        raise OverloadedError(
            f"{num_waiting} bytes of documents{whose} wait to be parsed, and {num_more} more are beyond the {most} "
            "that may: come back later"
        )
