"""Hosts that claim the same name again and again, each from a thread of its own."""

import time
from collections.abc import Sequence
from threading import Barrier, Lock, Thread

from kvblend.store import TieredStore, Variant

__all__ = ["take_turns"]


def take_turns(
    stores: Sequence[TieredStore], variant: Variant, *, rounds: int, wait_s: float = 0.0, hold_s: float = 0.0
) -> tuple[int, int]:
    """Returns how many held it at once at most, and how often it was held.

    The host at `number` waits `wait_s * (number + 1)` seconds before it asks again, and each holds it for `hold_s`.
    """
    holding, most, num_held = 0, 0, 0
    lock, at_once = Lock(), Barrier(len(stores))

    def ask(number: int, store: TieredStore) -> None:
        nonlocal holding, most, num_held
        at_once.wait()
        for _ in range(rounds):
            while (claim := store.claim(variant)) is None:
                time.sleep(wait_s * (number + 1))
            with lock:
                holding += 1
                most, num_held = max(most, holding), num_held + 1
            if hold_s:
                time.sleep(hold_s)
            with lock:
                holding -= 1
            claim()

    threads = [Thread(target=ask, args=each) for each in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most, num_held
