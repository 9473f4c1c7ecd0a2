"""The pins that one store holds."""

import threading
from collections.abc import Iterable

from kvblend.store.key import PassageKVKey
from kvblend.store.tier import Pin, Tier

__all__ = ["HeldPins"]


class HeldPins:
    """At most one pin for each key, in the first tier that had it. Safe from several threads."""

    def __init__(self) -> None:
        self._pins: dict[PassageKVKey, Pin] = {}
        self._lock = threading.Lock()

    def take(self, key: PassageKVKey, tiers: Iterable[Tier]) -> bool:
        """Pin `key` in the first of `tiers` that has it, unless it is pinned; False where none has."""
        with self._lock:
            held = self._pins.get(key)
            if held is not None:
                if held.holds():
                    return True
                self._pins.pop(key).release()
            for tier in tiers:
                pin = tier.pin(key)
                if pin is not None:
                    self._pins[key] = pin
                    return True
        return False

    def drop(self, key: PassageKVKey) -> bool:
        """Release the pin of `key`; False where there is none."""
        with self._lock:
            pin = self._pins.pop(key, None)
        if pin is None:
            return False
        pin.release()
        return True

    def drop_gone(self) -> None:
        """Release the pins of files that no lookup finds any more."""
        with self._lock:
            for key in [key for key, pin in self._pins.items() if not pin.holds()]:
                self._pins.pop(key).release()

    def drop_all(self) -> None:
        with self._lock:
            for pin in self._pins.values():
                pin.release()
            self._pins.clear()
