"""Child servers start, come back when they die, and end with everything they began."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvblend.cli.engine import free_port
from kvblend.cli.server_process import ServerProcess
from kvblend.core.errors import EngineUnavailableError

SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def server_process(tmp_path: Path, script: str) -> ServerProcess:
    port = free_port()
    return ServerProcess(
        "the server",
        [sys.executable, "-c", script, str(port)],
        environment=dict(os.environ),
        log_path=tmp_path / "logs" / "server.log",
        health_url=f"http://127.0.0.1:{port}/",
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    process = server_process(tmp_path, SERVER)
    process.start()
    process.wait_ready(timeout_s=120)
    yield process
    process.stop()


def child_pids(server: ServerProcess) -> list[int]:
    return [int(line.split()[1]) for line in server.log_path.read_text().splitlines() if line.startswith("child")]


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stop_ends_the_server_and_its_children(server: ServerProcess) -> None:
    pid = server.pid
    assert pid is not None
    server.stop()
    wait_until(lambda: not any(is_alive(each) for each in (pid, *child_pids(server))))


def test_a_killed_server_comes_back_without_its_old_children(server: ServerProcess) -> None:
    said: list[str] = []
    server.supervise(said.append)
    first, pid = child_pids(server), server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(child_pids(server)) == 2)
    server.wait_ready(timeout_s=120)
    assert server.pid not in (None, pid)
    assert not any(is_alive(each) for each in first)
    assert len(said) == 1 and "the server died" in said[0]


def test_a_server_that_ends_at_its_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    process = server_process(tmp_path, "raise SystemExit('no such model')")
    process.start()
    with pytest.raises(EngineUnavailableError, match=r"(?s)the server ended at its start.*no such model"):
        process.wait_ready(timeout_s=120)
    process.stop()


def test_a_server_dies_with_its_parent(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    parent = f"""
import pathlib, sys, time
from kvblend.cli.server_process import ServerProcess
command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port}"]
process = ServerProcess("s", command, environment={{}}, log_path=pathlib.Path("{log}"), health_url="http://127.0.0.1:{port}/")
process.start()
process.wait_ready(timeout_s=120)
print(process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-P", "-c", parent], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert is_alive(pid)
        child.kill()
    wait_until(lambda: not is_alive(pid))


SHARER = """
import http.server, subprocess, sys
from multiprocessing import resource_tracker, shared_memory
made = shared_memory.SharedMemory(create=True, size=1 << 20)
resource_tracker.unregister(made._name, "shared_memory")  # as if that process were killed, too
print("segment", made.name, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def segments(server: ServerProcess) -> list[Path]:
    lines = server.log_path.read_text().splitlines()
    return [Path("/dev/shm") / line.split()[1] for line in lines if line.startswith("segment")]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
def test_a_killed_server_leaves_no_shared_memory(tmp_path: Path) -> None:
    """Negative control: a segment of somebody else's, which nobody maps, stays."""
    foreign = Path("/dev/shm") / f"kvblend-test-{os.getpid()}"
    foreign.write_bytes(b"x")
    server = server_process(tmp_path, SHARER)
    server.start()
    server.wait_ready(timeout_s=120)
    (first,) = segments(server)
    assert first.exists()
    server.supervise(lambda message: None)
    assert server.pid is not None
    os.killpg(server.pid, signal.SIGKILL)
    wait_until(lambda: len(segments(server)) == 2)
    assert not first.exists(), "before it was started again"
    wait_until(lambda: server.pid is not None)
    server.wait_ready(timeout_s=120)
    server.stop()
    assert not any(path.exists() for path in segments(server))
    assert foreign.exists()
    foreign.unlink()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
def test_what_was_left_when_all_was_killed_goes_at_the_next_start(tmp_path: Path) -> None:
    server = server_process(tmp_path, SHARER)
    server.start()
    server.wait_ready(timeout_s=120)
    assert server.pid is not None
    os.killpg(server.pid, signal.SIGKILL)  # and nobody of ours is there to see it
    wait_until(lambda: server.pid is None)
    (left,) = segments(server)
    assert left.exists()
    again = server_process(tmp_path, SERVER)
    again.start()
    assert not left.exists()
    again.wait_ready(timeout_s=120)
    again.stop()
