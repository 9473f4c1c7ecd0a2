"""The names of a passage's objects in a Mooncake store, which lists none of its keys."""

from itertools import count

from kvblend.store.remote.mooncake_client import NO_KEY, MooncakeClient

__all__ = ["MooncakeNames"]

WINDOW = 16
"""Slots asked for at once: more than most passages have names."""
MAX_SLOTS = 4096


class MooncakeNames:
    """Names in numbered slots, each an object under `kvblend-names/<folder>/<number>` that is not evicted.

    A slot keeps what was put in it first, so of two writers one has it and the other goes on to the next. Names stay
    listed when their objects go, as long as there is another object of the passage. One whose slot is lost, with the
    member that held it, is found by its key as before, but no longer listed.
    """

    def __init__(self, client: MooncakeClient) -> None:
        self._client = client

    def of(self, folder: str) -> set[str]:
        """What is listed of a passage's folder. Raises OSError, as all here."""
        return set(self._slots(folder).values()) - {""}

    def add(self, name: str) -> None:
        """List a name; once."""
        folder = name.rsplit("/", 1)[0]
        slots = self._slots(folder)
        if name in slots.values():
            return
        for number in range(MAX_SLOTS):
            if number not in slots and self._take(_slot(folder, number), name):
                return
        raise OSError(f"{MAX_SLOTS} names of {folder} are listed, and no more can be")

    def drop(self, folder: str) -> None:
        """List nothing of a folder any more; from the end, so that what an interruption leaves is still found."""
        for number in sorted(self._slots(folder), reverse=True):
            with self._client.call() as store:
                code = store.remove(_slot(folder, number), force=True)
            self._client.check(code, "remove", allowed=(NO_KEY,))

    def _take(self, slot: str, name: str) -> bool:
        with self._client.call() as store:
            code = store.put(slot, name.encode(), self._client.placement(evicted=False))
            self._client.check(code, "put")
            return bool(store.get(slot) == name.encode())

    def _slots(self, folder: str) -> dict[int, str]:
        """Those that are taken; "" where what they hold cannot be read. The first window without any is the end."""
        found: dict[int, str] = {}
        for first in count(0, WINDOW):
            slots = {_slot(folder, number): number for number in range(first, first + WINDOW)}
            taken = self._client.exist(slots)
            if not taken:
                break
            with self._client.call() as store:
                held = store.get_batch([_slot(folder, number) for number in taken])
            found |= {number: bytes(name).decode() for number, name in zip(taken, held, strict=True)}
        return found


def _slot(folder: str, number: int) -> str:
    return f"kvblend-names/{folder}/{number}"
