"""Questions to the host's peer process."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch

from kvblend.store.buffers import byte_view, empty_extents
from kvblend.store.deadline import Deadline
from kvblend.store.peers.host_process import HostProcess
from kvblend.store.peers.messages import Grant, Reply, Request, pack, receive_blocking, unpack

__all__ = ["LocalClient"]

LONGEST_S = 10.0
"""Of a question whose deadline is later."""
LATE_S = 0.005
"""What an answer may come later than was asked for: it is given as what has come by then."""


class _Connection:
    def __init__(self, process: HostProcess, timeout_s: float) -> None:
        self.socket, self.ring = process.connect(timeout_s)

    def close(self) -> None:
        self.socket.close()
        os.close(self.ring)


class LocalClient:
    """Safe from several threads: each question has a connection of its own, which is used again unless it failed."""

    def __init__(self, process: HostProcess) -> None:
        self._process = process
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._is_closed = False

    def ask(self, op: Any, deadline: Deadline, **fields: Any) -> Reply:
        """Raises OSError where it does not answer in time."""
        with self._connection(deadline) as connection:
            return self._ask(connection, op, deadline, **fields)

    def fetch(self, names: list[str], deadline: Deadline) -> tuple[dict[str, torch.Tensor], int]:
        """Files' bytes, each uint8 [num_bytes] at a multiple of 4 KiB, and how many peers failed. Raises as `ask`."""
        with self._connection(deadline) as connection:
            reply = self._ask(connection, "fetch", deadline, names=names)
            came = {grant.name: _copied(connection.ring, grant) for grant in reply.grants}
            if reply.grants:
                leases = [grant.lease for grant in reply.grants]
                connection.socket.sendall(pack(Request(id=0, op="release", leases=leases)))
            return came, len(reply.unreached)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _ask(self, connection: _Connection, op: Any, deadline: Deadline, **fields: Any) -> Reply:
        wait_s = min(deadline.remaining, LONGEST_S)
        connection.socket.settimeout(max(wait_s, 0.001) + LATE_S)
        number = next(self._numbers)
        connection.socket.sendall(pack(Request(id=number, op=op, wait_s=wait_s, **fields)))
        reply = unpack(Reply, receive_blocking(connection.socket))
        assert reply.id == number, "a connection is used again only where its last reply has come"
        if reply.error is not None:
            raise OSError(reply.error)
        return reply

    @contextmanager
    def _connection(self, deadline: Deadline) -> Iterator[_Connection]:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = _Connection(self._process, max(min(deadline.remaining, LONGEST_S), 0.001))
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if not self._is_closed:
                self._idle.append(connection)
                return
        connection.close()


def _copied(ring: int, grant: Grant) -> torch.Tensor:
    """uint8 [num_bytes]. By a system call, which holds no other thread up."""
    memory = empty_extents(1, grant.num_bytes)[0]
    view, done = byte_view(memory), 0
    while done < grant.num_bytes:
        done += os.preadv(ring, [view[done:]], grant.start + done)
    return memory
