"""How many answers are under way at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

from kvblend.core.errors import TooManyRequestsError

__all__ = ["Admission"]

RETRY_AFTER_S = 1.0


class Admission:
    """Counts answers under way, and takes no more than so many. Of one event loop."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._num_requests = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place while the block runs: until a streamed answer's last event. Raises TooManyRequestsError."""
        if self._num_requests >= self._max_requests:
            raise TooManyRequestsError(
                f"{self._num_requests} requests for answers are under way, as many as the service takes at a time",
                retry_after_s=RETRY_AFTER_S,
            )
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1
