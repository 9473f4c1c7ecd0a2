"""Who works on what, among hosts that share a Mooncake store."""

from collections.abc import Callable
from functools import partial

from kvblend.store.remote.claim_note import ClaimNote
from kvblend.store.remote.mooncake_client import NO_KEY, NO_ROOM, MooncakeClient
from kvblend.store.remote.objects import RemoteFullError

__all__ = ["MooncakeClaims"]

NUM_SLOTS = 8


class MooncakeClaims:
    """A name has slots, each an object under `kvblend-claims/<name>/<number>` that keeps what was put in it first.

    Whose note lies in a slot, and sees no other that is not over in any, has the claim: of two that come at once none
    or one. A note is taken away by its own holder alone, as long as it is not over; later by whoever has the claim
    then. So nobody takes away what another has just put. Everything raises OSError.
    """

    def __init__(self, client: MooncakeClient) -> None:
        self._client = client

    def take(self, name: str, seconds: float) -> Callable[[], object] | None:
        """Claim a name; returns what gives it back, or None where somebody has it."""
        slots = [f"kvblend-claims/{name}/{number}" for number in range(NUM_SLOTS)]
        notes = self._notes(slots)
        if _others(notes):
            return None
        own = next((slot for slot in slots if slot not in notes), None)
        if own is None:
            raise OSError(f"all {NUM_SLOTS} slots for claims of {name} are taken by notes that are over")
        note = ClaimNote.new(seconds)
        self._put(own, note)
        notes = self._notes(slots)
        if notes.pop(own, None) != note:
            return None  # another was first
        if _others(notes):
            self._remove(own)
            return None
        for slot in notes:
            self._remove(slot)
        return partial(self._give_back, own, note)

    def _notes(self, slots: list[str]) -> dict[str, ClaimNote | None]:
        """What lies in the slots that are taken; None of what cannot be read, or is no note."""
        taken = list(self._client.exist({slot: slot for slot in slots}))
        if not taken:
            return {}
        with self._client.call() as store:
            held = store.get_batch(taken)
        return {slot: ClaimNote.parse(bytes(data)) for slot, data in zip(taken, held, strict=True)}

    def _put(self, slot: str, note: ClaimNote) -> None:
        """Whether it lies there now is to be seen: where there was another, that is kept, and nothing said of it."""
        with self._client.call() as store:
            code = store.put(slot, note.pack(), self._client.placement())
        if code == NO_ROOM:
            raise RemoteFullError("no member of the store has room")
        self._client.check(code, "put")

    def _remove(self, slot: str) -> None:
        with self._client.call() as store:
            code = store.remove(slot, force=True)
        self._client.check(code, "remove", allowed=(NO_KEY,))

    def _give_back(self, slot: str, note: ClaimNote) -> None:
        if not note.is_nearly_over:
            self._remove(slot)


def _others(notes: dict[str, ClaimNote | None]) -> bool:
    """Whether somebody has the claim."""
    return any(note is not None and not note.is_over for note in notes.values())
