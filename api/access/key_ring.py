"""The keys that the service takes; those of a file are read anew whenever it changes."""

import hmac
import logging
import time
from pathlib import Path

from kvblend.api.access.caller import Caller
from kvblend.api.access.key_file import KeyFile, TenantEntry, key_digest, parse_keys, read_key_file
from kvblend.core.errors import InvalidRequestError

__all__ = ["KeyRing"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
SINGLE_KEY = Caller("KVBLEND_API_KEY")
NO_KEYS = Caller("none")
"""Whoever asks a service that has no keys: it does not tell anybody apart."""
NO_LIMITS = TenantEntry()

Stamp = tuple[int, int, int]


class KeyRing:
    """The keys of a file or of a text, beside the one of the settings. Where there are none, everybody is the operator.

    A key is known by its SHA-256, and compared with every one of the ring in constant time.
    """

    def __init__(self, path: Path | None, *, text: str | None = None, api_key: str | None = None) -> None:
        """Read the file, or the text, which is as a file's. Raises InvalidRequestError where it is no such, or where
        there are both, or a key of it is `api_key`."""
        if path is not None and text is not None:
            raise InvalidRequestError(f"KVBLEND_KEYS={path} and KVBLEND_API_KEYS both hold keys: set one of them")
        self._path = path
        self._single = {} if api_key is None else {key_digest(api_key): SINGLE_KEY}
        self._hold(self._single)
        self._limits: dict[str, TenantEntry] = {}
        self._stamp: Stamp | None = None
        self._looked_at = time.monotonic()
        if path is not None:
            self._stamp = _stamp(path)
            self._take(read_key_file(path))
        if text is not None:
            self._take(parse_keys(text, source="KVBLEND_API_KEYS"))

    @property
    def is_empty(self) -> bool:
        """Whether there are no keys, and none is asked for."""
        return not self._callers

    def find(self, key: str | None) -> Caller | None:
        """Whose key it is; None where it is nobody's."""
        self._look()
        if self.is_empty:
            return NO_KEYS
        presented, found = key_digest(key or ""), None
        for digest, caller in self._callers.items():  # all of them, whichever it is
            if hmac.compare_digest(digest, presented):
                found = caller
        return None if key is None else found

    def limits(self, tenant: str) -> TenantEntry:
        """What a tenant may take."""
        return self._limits.get(tenant, NO_LIMITS)

    @property
    def tenants(self) -> list[str]:
        """Those that have a key; without keys everybody is the default tenant."""
        self._look()
        return self._tenants

    def _look(self) -> None:
        """Read the file where it is another than last time; one that is broken leaves the ring as it was."""
        now = time.monotonic()
        if self._path is None or now < self._looked_at + LOOK_EVERY_S:
            return
        self._looked_at = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp  # what is wrong with it is said once
        try:
            self._take(read_key_file(self._path))
        except InvalidRequestError as error:
            logger.error("%s; the keys that it had before are still taken", error.message)
        else:
            logger.info("read %d keys from %s", len(self._callers), self._path)

    def _take(self, file: KeyFile) -> None:
        found = {key.digest: Caller(key.name, key.tenant, key.role) for key in file.keys}
        for both in found.keys() & self._single:
            raise InvalidRequestError(
                f"the key {found[both].key!r} is KVBLEND_API_KEY, too, which is an admin's of the default tenant: "
                "give it one role",
                param="keys",
            )
        self._hold({**found, **self._single})
        self._limits = dict(file.tenants)

    def _hold(self, callers: dict[bytes, Caller]) -> None:
        """Take these keys from now on. Every request asks for their tenants."""
        self._callers = callers
        self._tenants = sorted({caller.tenant for caller in callers.values()} or {NO_KEYS.tenant})


def _stamp(path: Path) -> Stamp | None:
    """What changes with the file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
