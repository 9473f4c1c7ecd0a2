"""Room in memory for documents on their way in."""

from collections.abc import Iterator
from contextlib import contextmanager

from kvblend.core.errors import OverloadedError

__all__ = ["UploadRoom"]

MAX_WAITING_BYTES = 1 << 30
"""One upload may be larger, alone."""


class UploadRoom:
    """Counts the bytes of documents from before they are read into memory until they are parsed. Of one event loop."""

    def __init__(self) -> None:
        self._num_bytes = 0

    @contextmanager
    def taken(self, num_bytes: int) -> Iterator[None]:
        """Take room, which is given back at once where the block fails. Raises OverloadedError where there is none."""
        if self._num_bytes and self._num_bytes + num_bytes > MAX_WAITING_BYTES:
            raise OverloadedError(
                f"{self._num_bytes} bytes of documents wait to be parsed, and {num_bytes} more are beyond the "
                f"{MAX_WAITING_BYTES} that may: come back later"
            )
        self.hold(num_bytes)
        try:
            yield
        except BaseException:
            self.give(num_bytes)
            raise

    def hold(self, num_bytes: int) -> None:
        """Count what was accepted before."""
        self._num_bytes += num_bytes

    def give(self, num_bytes: int) -> None:
        """Give room back."""
        self._num_bytes -= num_bytes
