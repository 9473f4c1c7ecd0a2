"""How much of each kind of work is under way at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from kvblend.core.errors import TooManyRequestsError

__all__ = ["Admission", "Work"]

RETRY_AFTER_S = 1.0
MAX_UPLOADS = 32
"""A body of each is on its way into memory, or into a temporary file."""

Work = Literal["answer", "lookup", "upload"]
"""What vLLM or a blend answers; what is searched, tokenized or rendered; documents that are received."""


class Admission:
    """Counts work under way, and takes no more of a kind than so much. Of one event loop."""

    def __init__(self, max_requests: int) -> None:
        """`max_requests`: of answers, and as many of lookups beside them."""
        self._most: dict[Work, int] = {"answer": max_requests, "lookup": max_requests, "upload": MAX_UPLOADS}
        self._taken: dict[Work, int] = dict.fromkeys(self._most, 0)

    @contextmanager
    def place(self, work: Work) -> Iterator[None]:
        """Hold a place while the block runs: until a streamed answer's last event. Raises TooManyRequestsError."""
        if self._taken[work] >= self._most[work]:
            raise TooManyRequestsError(
                f"{self._taken[work]} {work}s are under way, as many as the service takes at a time",
                retry_after_s=RETRY_AFTER_S,
            )
        self._taken[work] += 1
        try:
            yield
        finally:
            self._taken[work] -= 1
