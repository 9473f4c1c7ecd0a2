"""What the processes of a running service hold: memory, files, sockets. Linux alone."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvblend.core.errors import InvalidRequestError

__all__ = ["Held", "ServiceProcesses"]

PROC = Path("/proc")
LISTENING = "0A"
VLLM_SERVER = "vllm.entrypoints.openai.api_server"
MIB = 1 << 20


@dataclass(frozen=True)
class Held:
    """`memory_mib`: private, without what of files is mapped."""

    memory_mib: float
    num_files: int
    num_sockets: int


class ServiceProcesses:
    """Those of the service that listens on a port of this machine, and of the vLLM that is its child.

    Found anew each time: both may start others.
    """

    def __init__(self, port: int) -> None:
        """Raises InvalidRequestError where no process of this machine, that we may look at, listens there."""
        found = _listener(port)
        if found is None:
            raise InvalidRequestError(f"no process of this machine that may be looked at listens on port {port}")
        self._service = found

    def service(self) -> Held:
        """Of the service with its helpers."""
        engine = {pid for root in self._engines() for pid in _family(root)}
        return _held([pid for pid in _family(self._service) if pid not in engine])

    def engine(self) -> Held | None:
        """Of its vLLM; None where that is no child of it, or is down."""
        roots = self._engines()
        return _held([pid for root in roots for pid in _family(root)]) if roots else None

    def engine_url(self) -> str | None:
        """Where that vLLM answers."""
        for root in self._engines():
            arguments = _arguments(root)
            return f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}"
        return None

    def _engines(self) -> list[int]:
        return [pid for pid in _children(self._service) if VLLM_SERVER in _arguments(pid)]


def _held(pids: Sequence[int]) -> Held:
    memory = files = sockets = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            status = (PROC / str(pid) / "status").read_text()
            memory += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
            links = list(_links(pid))
            files += len(links)
            sockets += sum(link.startswith("socket:") for link in links)
    return Held(memory / MIB, files, sockets)


def _links(pid: int) -> Iterator[str]:
    for entry in (PROC / str(pid) / "fd").iterdir():
        with contextlib.suppress(OSError):
            yield str(entry.readlink())


def _family(pid: int) -> list[int]:
    """A process and all that come of it."""
    return [pid, *(each for child in _children(pid) for each in _family(child))]


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for file in (PROC / str(pid) / "task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def _arguments(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "cmdline").read_text().split("\0")
    except OSError:
        return []


def _listener(port: int) -> int | None:
    inodes = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / name).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if inodes.intersection(_links(int(entry.name))):
                    return int(entry.name)
    return None
