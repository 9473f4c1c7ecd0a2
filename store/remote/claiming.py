"""A claim that may come when nobody waits for it any more."""

import threading
from collections.abc import Callable

__all__ = ["Claiming", "GiveBack"]

GiveBack = Callable[[], object]


class Claiming:
    """Asks for a claim in one thread, for another that may give up waiting: then it is given back when it comes."""

    def __init__(self, ask: Callable[[], GiveBack | None]) -> None:
        """`ask` returns what gives the claim back; None where somebody else has it."""
        self._ask = ask
        self._lock = threading.Lock()
        self._is_abandoned = False
        self._own: GiveBack | None = None

    def take(self) -> GiveBack | None:
        """As `ask`; raises as that."""
        own = self._ask()
        with self._lock:
            if not self._is_abandoned:
                self._own = own
                return own
        if own is not None:
            own()
        return None

    def abandon(self) -> GiveBack | None:
        """Nobody waits any more; returns what gives back a claim that came in this very moment."""
        with self._lock:
            self._is_abandoned = True
            return self._own
