"""The peer process's end towards the processes of its own host."""

import asyncio
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

from kvblend.store.peers.connection import serve
from kvblend.store.peers.host_folder import SOCKET_NAME, unix_socket
from kvblend.store.peers.peers import Peers

__all__ = ["LocalServer"]

log = logging.getLogger(__name__)

LINGER_S = 0.4
FIRST_S = 5.0
"""Within which the first process connects: the one that started this, once it is told that it is ready."""


class LocalServer:
    """Answers the host's processes until the last one is gone.

    Each gets the ring's file with its connection: what was fetched for it lies there.
    """

    def __init__(self, folder: Path, peers: Peers) -> None:
        self._peers = peers
        self._connections: set[asyncio.Task[None]] = set()
        self._was_needed = asyncio.Event()
        with suppress(FileNotFoundError):
            (folder / SOCKET_NAME).unlink()  # a dead one's
        with unix_socket(folder) as (listener, address):
            previous = os.umask(0o007)
            try:
                listener.bind(address)
            finally:
                os.umask(previous)
            listener.listen(64)
            listener.setblocking(False)
            self._listener = listener

    async def run(self) -> None:
        accepting = asyncio.create_task(self._accept())
        try:
            async with asyncio.timeout(FIRST_S):
                await self._was_needed.wait()
            num_idle = 0
            while num_idle < 2:
                await asyncio.sleep(LINGER_S / 2)
                num_idle = 0 if self._connections else num_idle + 1
        except TimeoutError:
            log.debug("who started this does not need it any more")
        finally:
            accepting.cancel()

    async def _accept(self) -> None:
        """Without a time limit: one that runs out in the moment of a connection would lose it."""
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            task = asyncio.create_task(self._serve(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
            self._was_needed.set()

    async def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            socket.send_fds(connection, [b"\0"], [self._peers.ring.fd])
            reader, writer = await asyncio.open_unix_connection(sock=connection)
        except OSError:  # it is gone already
            connection.close()
            return
        holder = object()
        try:
            await serve(reader, writer, self._peers.answer, holder)
        finally:
            self._peers.ended(holder)
