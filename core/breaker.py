"""A circuit breaker: what fails again and again is not asked for a while."""

import logging
import threading
import time
from typing import Literal

__all__ = ["CircuitBreaker"]

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 60.0


class CircuitBreaker:
    """Closed until `max_failures` calls in a row have failed; then open, and every `pause_s` seconds one call is let
    through, each pause twice as long as the last one up to `longest_pause_s`, until one succeeds. Each
    change is one line in the log. Safe from several threads, and holds none of them up: pybreaker's, for one, makes
    calls take turns.
    """

    def __init__(
        self, name: str, *, max_failures: int, pause_s: float, longest_pause_s: float = LONGEST_PAUSE_S
    ) -> None:
        self._name, self._max_failures, self._first_pause_s = name, max_failures, pause_s
        self._longest_pause_s = longest_pause_s
        self._lock = threading.Lock()
        self._num_failures = 0
        self._pause_s, self._retry_at = pause_s, 0.0
        self._state: Literal["closed", "open", "trying"] = "closed"

    @property
    def is_open(self) -> bool:
        return self._state != "closed"

    def allows(self) -> bool:
        """Whether a call may be made now. Who is allowed says afterwards that it `succeeded` or `failed`."""
        with self._lock:
            if self._state == "open" and time.monotonic() >= self._retry_at:
                self._state = "trying"
                return True
            return self._state == "closed"

    def succeeded(self) -> None:
        with self._lock:
            was_open, self._state = self._state != "closed", "closed"
            self._num_failures, self._pause_s = 0, self._first_pause_s
        if was_open:
            log.warning("the %s answers again", self._name)

    def failed(self, error: BaseException) -> None:
        with self._lock:
            self._num_failures += 1
            opens = self._state == "closed" and self._num_failures >= self._max_failures
            if opens or self._state == "trying":
                self._state, self._retry_at = "open", time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
        if opens:
            log.warning(
                "the %s failed%s: it is not asked until it answers again (%s)",
                self._name,
                f" {self._max_failures} times in a row" if self._max_failures > 1 else "",
                f"{type(error).__name__} {error}".strip(),
            )
