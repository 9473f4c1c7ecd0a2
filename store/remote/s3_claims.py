"""Who works on what, among hosts that share a bucket."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from kvblend.store.remote.claim_note import ClaimNote

__all__ = ["S3Claims"]

log = logging.getLogger(__name__)

FOLDER = ".claims"
"""No model fingerprint begins with a dot: what lies here is no passage KV to anybody."""
MAX_TRIES = 3


class S3Claims:
    """A claim is an object that is put where there is none, or in place of one whose time is over and that is still the
    one that was seen. Everything raises obstore's errors.
    """

    def __init__(self, obstore: Any, store: Any) -> None:
        self._obstore, self._store = obstore, store

    def take(self, name: str, seconds: float) -> Callable[[], object] | None:
        """Claim a name; returns what gives it back, or None where somebody has it."""
        path, errors = f"{FOLDER}/{name}", self._obstore.exceptions
        for _ in range(MAX_TRIES):
            note = ClaimNote.new(seconds)
            try:
                self._obstore.put(self._store, path, note.pack(), mode="create")
                return partial(self._give_back, path, note)
            except errors.AlreadyExistsError:
                found = self._found(path)
            if found is None:
                continue  # it was given back meanwhile
            held, e_tag = found
            if held is not None and not held.is_over:
                return None
            try:
                self._obstore.put(self._store, path, note.pack(), mode={"e_tag": e_tag})
                return partial(self._give_back, path, note)
            except (errors.PreconditionError, FileNotFoundError) as error:
                log.debug("another host has taken over the claim %s: %s", path, error)
        return None

    def _found(self, path: str) -> tuple[ClaimNote | None, str | None] | None:
        """What an object says, None where it is no claim, and which it is; None where there is none."""
        try:
            found = self._obstore.get(self._store, path)
            return ClaimNote.parse(bytes(found.bytes())), found.meta["e_tag"]
        except FileNotFoundError:
            return None

    def _give_back(self, path: str, note: ClaimNote) -> None:
        """S3 deletes whatever lies there: what may be another's by now is left to it."""
        if not note.is_nearly_over and (found := self._found(path)) is not None and found[0] == note:
            self._obstore.delete(self._store, path)
