"""A real Mooncake store on this host: its master, and members that lend it memory."""

import importlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from kvblend.cli.engine import free_port
from tests.store.remote.servers import Server

__all__ = ["FAULT", "MooncakeServer", "needs_mooncake"]

SEGMENT_BYTES = 64 << 20
BUFFER_BYTES = 64 << 20


def _fault() -> str | None:
    try:
        importlib.import_module("mooncake.store")
    except ImportError as error:
        return f"Mooncake cannot be loaded (Debian: libibverbs1 librdmacm1 libnl-3-200 libnl-route-3-200): {error}"
    return None


FAULT = _fault()
needs_mooncake = pytest.mark.skipif(FAULT is not None, reason=str(FAULT))


class MooncakeServer(Server):
    """One master; `kill`, `stall` and `go_on` are of it and all members."""

    def __init__(self, *, num_members: int = 1, num_replicas: int = 1) -> None:
        port = free_port()
        command = [sys.executable, "-m", "mooncake.cli", "--rpc_address=127.0.0.1", f"--rpc_port={port}"]
        command += [f"--metrics_port={free_port()}", "--client_ttl=2"]
        super().__init__(command, port)
        self._num_members, self._num_replicas = num_members, num_replicas
        self.members: list[subprocess.Popen[bytes]] = []
        self._peer: Any = None

    @property
    def url(self) -> str:
        return f"mooncake://127.0.0.1:{self.port}?buffer={BUFFER_BYTES}&replicas={self._num_replicas}"

    def start(self) -> None:
        super().start()
        for _ in range(self._num_members):
            self.add_member()

    def add_member(self) -> None:
        """One more; returns when an object can be put."""
        command = [sys.executable, "-m", "mooncake.cli_client", "--host=127.0.0.1", f"--port={free_port()}"]
        command += [f"--master_server_address=127.0.0.1:{self.port}", "--metadata_server=P2PHANDSHAKE"]
        command += [f"--global_segment_size={SEGMENT_BYTES}"]
        out = subprocess.DEVNULL
        self.members.append(subprocess.Popen(command, stdout=out, stderr=out))
        until = time.monotonic() + 120
        while not self._has_room():
            assert time.monotonic() < until and self.members[-1].poll() is None, "the member did not start"
            time.sleep(0.05)

    def _has_room(self) -> bool:
        """In each member."""
        from mooncake.store import ReplicateConfig

        everywhere = ReplicateConfig()
        everywhere.replica_num = len(self.members)
        code = self.peer().put("ready", b"ready", everywhere)
        num_replicas = len(self.peer().get_replica_desc("ready"))
        self.peer().remove("ready", force=True)
        return code == 0 and num_replicas == len(self.members)

    def lose_member(self) -> None:
        """The first of them dies."""
        member = self.members.pop(0)
        member.kill()
        member.wait()

    def kill(self) -> None:
        super().kill()
        while self.members:
            self.lose_member()

    def stall(self) -> None:
        super().stall()
        for member in self.members:
            member.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        super().go_on()
        for member in self.members:
            member.send_signal(signal.SIGCONT)

    def num_keys(self) -> int:
        """That are left; they go."""
        return int(self.peer().remove_all(force=True))

    def overwrite(self, name: str, data: bytes) -> None:
        key = f"kvblend/{name}"
        self.peer().remove(key, force=True)
        assert not data or self.peer().put(key, data) == 0  # to Mooncake an empty object is none

    def read(self, name: str) -> bytes:
        return bytes(self.peer().get(f"kvblend/{name}"))

    def peer(self) -> Any:
        """A client beside the one that is tested."""
        if self._peer is None:
            from mooncake.store import MooncakeDistributedStore

            self._peer = MooncakeDistributedStore()
            master = f"127.0.0.1:{self.port}"
            assert self._peer.setup("127.0.0.1", "P2PHANDSHAKE", 0, BUFFER_BYTES, "tcp", "", master) == 0
        return self._peer
