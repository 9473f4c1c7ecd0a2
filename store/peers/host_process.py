"""A host's peer process, as its other processes see it."""

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

from kvblend.core.errors import InvalidRequestError
from kvblend.core.settings import Settings
from kvblend.store.peers.addresses import listen_address, peer_addresses
from kvblend.store.peers.host_folder import host_folder, try_lock, unix_socket
from kvblend.store.peers.nixl_memory import require_nixl

__all__ = ["HostProcess"]

log = logging.getLogger(__name__)

START_S = 60.0
"""It imports torch, on a busy machine."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 60.0


class HostProcess:
    """The one process of a host that talks to peers, started by whichever process needs it first.

    It lives as long as one of them holds a connection to it; where it dies, one of them starts it again.
    """

    def __init__(self, settings: Settings) -> None:
        """Start it, or find it. Raises InvalidRequestError where it cannot be, with the reason."""
        self._settings, self.folder = settings, host_folder(settings)
        self._child: subprocess.Popen[str] | None = None
        self._closing = threading.Event()
        self._presence = self._start()
        self._watch = threading.Thread(target=self._keep, name="kvblend-peers", daemon=True)
        self._watch.start()

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """None where `settings` name no peers, and serve none."""
        if listen_address(settings) is None and not peer_addresses(settings):
            return None
        require_nixl()
        return cls(settings)

    def connect(self, timeout_s: float) -> tuple[socket.socket, int]:
        """A connection to it, and its ring's file; both are the caller's to close. Raises OSError."""
        with unix_socket(self.folder) as (connection, address):
            connection.settimeout(timeout_s)
            connection.connect(address)
            _, fds, _, _ = socket.recv_fds(connection, 1, 1)
            if not fds:
                raise ConnectionError("the peer process is closing")
            return connection, fds[0]

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._presence.shutdown(socket.SHUT_RDWR)  # wakes the watch
        self._watch.join()
        self._presence.close()

    def _keep(self) -> None:
        """Start it again whenever it dies."""
        pause_s = FIRST_PAUSE_S
        while True:
            self._await_end()
            if not self._closing.is_set():
                log.warning("the peer process of %s has died, and is started again", self.folder)
            while not self._closing.wait(pause_s):
                began = time.monotonic()
                try:
                    self._presence.close()
                    self._presence = self._start()
                except (InvalidRequestError, OSError) as error:
                    if self._closing.is_set():
                        return
                    log.warning("the peer process cannot be started again, and is tried later: %s", error)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                    continue
                pause_s = FIRST_PAUSE_S
                log.debug("the peer process was started again within %.1f s", time.monotonic() - began)
                break
            if self._closing.is_set():
                return

    def _await_end(self) -> None:
        try:
            self._presence.settimeout(None)
            while self._presence.recv(1):
                pass
        except OSError as error:
            log.debug("the peer process is gone: %s", error)

    def _start(self) -> socket.socket:
        """A connection that says that this process needs it. Raises InvalidRequestError."""
        until = time.monotonic() + START_S
        while not self._closing.is_set():
            try:
                connection, ring = self.connect(START_S)
            except OSError:
                lock = try_lock(self.folder)
                if lock is not None:
                    self._spawn(lock)
                elif time.monotonic() > until:
                    raise InvalidRequestError(
                        f"the peer process of {self.folder} did not answer within {START_S:.0f} s"
                    ) from None
                else:
                    time.sleep(0.05)  # another process is starting it
            else:
                os.close(ring)
                return connection
        raise OSError("it is not needed any more")

    def _spawn(self, lock: int) -> None:
        """Start it with the lock, and wait until it is ready. Raises InvalidRequestError where it is not."""
        if self._child is not None:
            self._child.wait()  # it held the lock, and holds it no more
        package = str(Path(__file__).parents[3])
        paths = os.pathsep.join(
            dict.fromkeys([package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
        )
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "kvblend.store.peers", str(lock)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[lock],
                start_new_session=True,  # a terminal's interrupt is not meant for it while others need it
                env={**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},  # a GPU is none of its business
            )
        finally:
            os.close(lock)
        assert self._child.stdin is not None and self._child.stdout is not None
        with self._child.stdin as own, contextlib.suppress(BrokenPipeError):
            json.dump(_needed(self._settings), own)
        with self._child.stdout as own:
            said = own.readline().strip()
        if said != "ready":
            self._child.wait()
            raise InvalidRequestError(said or f"the peer process ended with status {self._child.returncode}")
        threading.Thread(target=self._child.wait, name="kvblend-peers-end", daemon=True).start()  # leaves no zombie


def _needed(settings: Settings) -> dict[str, str | int | None]:
    """What it needs of them, in the clear: it goes through a pipe."""
    token = settings.peer_token
    return {
        "cpu_path": str(settings.cpu_path),
        "cpu_bytes": settings.cpu_bytes,
        "disk_path": str(settings.disk_tier_path),
        "disk_bytes": settings.disk_bytes,
        "eviction": settings.eviction,
        "remote": settings.remote,
        "peer_address": settings.peer_address,
        "peer_token": token.get_secret_value() if token is not None else None,
    }
