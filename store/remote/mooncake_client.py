"""A process's membership of a Mooncake store, begun at its first call."""

import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from kvblend.core.errors import InvalidRequestError

__all__ = ["NO_KEY", "NO_ROOM", "MooncakeClient"]

NO_ROOM, NO_KEY = -200, -704
"""Codes of Mooncake's: no member has room, or there is none; there is no such key."""

CONNECT_S = 0.5
CLOSE_S = 1.0

Name = TypeVar("Name")


class MooncakeClient:
    """Safe from several threads. Raises InvalidRequestError where Mooncake is installed but cannot be loaded.

    master: `host:port`. host: this process's address for the store's members; None: the one that it reaches the master
    from. segment_bytes: memory that this process lends the store, none by default. buffer_bytes: memory that objects
    pass through, and so the largest that one may be. num_replicas: members that each object lies at, if there are as
    many; not more of them than that may be lost.
    """

    def __init__(
        self, master: str, *, host: str | None, segment_bytes: int, buffer_bytes: int, num_replicas: int
    ) -> None:
        try:
            from mooncake import store
        except ImportError as error:
            raise InvalidRequestError(
                f"KVBLEND_REMOTE needs Mooncake, which cannot be loaded: {error}. On Debian it takes the packages "
                "libcurl4, libibverbs1, librdmacm1, libnl-3-200 and libnl-route-3-200",
                param="KVBLEND_REMOTE",
            ) from error
        self.master, self.buffer_bytes = master, buffer_bytes
        self._mooncake: Any = store
        self._host, self._segment_bytes, self._num_replicas = host, segment_bytes, num_replicas
        self._lock = threading.Condition()
        self._joining = threading.Lock()
        self._store: Any = None
        self._num_calls = 0
        self._closed = False

    @contextmanager
    def call(self) -> Iterator[Any]:
        """The store, for one call or a few. Raises OSError where its master is not reached, and after `close`."""
        with self._joining:
            if self._store is None:
                self._store = self._joined()
        with self._lock:
            if self._closed:
                raise OSError("the client is closed")
            self._num_calls += 1
        try:
            yield self._store
        finally:
            with self._lock:
                self._num_calls -= 1
                self._lock.notify_all()

    def exist(self, keys: Mapping[str, Name]) -> Collection[Name]:
        """What is named by those keys that there are, in order. Raises OSError where the master does not answer."""
        if not keys:
            return []
        with self.call() as store:
            found = store.batch_is_exist(list(keys))
        self.check(min(found), "is_exist")
        return [name for name, there in zip(keys.values(), found, strict=True) if there == 1]

    def placement(self, *, evicted: bool = True) -> Any:
        """Where an object is put, and whether the master may evict it."""
        placement = self._mooncake.ReplicateConfig()
        placement.replica_num, placement.with_hard_pin = self._num_replicas, not evicted
        return placement

    def check(self, code: int, call: str, *, allowed: Collection[int] = ()) -> None:
        """Raise OSError where a call's code is an error's that is not `allowed`."""
        if code < 0 and code not in allowed:
            raise OSError(f"Mooncake's {call} failed with code {code}")

    def close(self) -> None:
        """Leave the store. Where calls are still under way it is left when the process ends."""
        with self._lock:
            self._closed = True
            until = time.monotonic() + CLOSE_S
            while self._num_calls and (left := until - time.monotonic()) > 0:
                self._lock.wait(left)
            store, self._store = (None, self._store) if self._num_calls else (self._store, None)
        if store is not None:
            store.close()

    def _joined(self) -> Any:
        address, port = self.master.rsplit(":", 1)
        # Mooncake's own attempts to reach a master that is not there take 90 seconds.
        with socket.create_connection((address.strip("[]"), int(port)), timeout=CONNECT_S) as tried:
            own = tried.getsockname()[0]
        store = self._mooncake.MooncakeDistributedStore()
        code = store.setup(
            self._host or own, "P2PHANDSHAKE", self._segment_bytes, self.buffer_bytes, "tcp", "", self.master
        )
        self.check(-abs(code), "setup")
        return store
