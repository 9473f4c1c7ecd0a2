"""Copies to tiers that nobody waits for."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["WriteBehind"]

log = logging.getLogger(__name__)

MAX_WAITING = 64


class WriteBehind:
    """A thread that does one thing after the other; what is asked for while too much waits is left undone."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"kvblend-{name}")
        self._waiting: set[str] = set()
        self._lock = threading.Lock()

    def submit(self, what: str, work: Callable[[], object]) -> None:
        """Do `work` soon, once for `what`, which is logged where it fails."""
        with self._lock:
            taken = what not in self._waiting and len(self._waiting) < MAX_WAITING
            if taken:
                self._waiting.add(what)
        if taken:
            self._executor.submit(self._run, what, work)
        else:
            log.debug("%s: too much waits, or the same", what)

    def drain(self) -> None:
        """Wait until all that was asked for so far is done."""
        self._executor.submit(lambda: None).result()

    def close(self) -> None:
        """Do what waits, and end the thread."""
        self._executor.shutdown()

    def _run(self, what: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # the thread's edge: nobody waits to be told
            log.warning("%s: %s", what, error)
        finally:
            with self._lock:
                self._waiting.discard(what)
