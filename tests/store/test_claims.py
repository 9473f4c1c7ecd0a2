"""One at a time encodes a passage, among all that share a store."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kvblend.core.settings import Settings
from kvblend.store import Deadline, TieredStore
from tests.store.remote.servers import Server, ValkeyServer
from tests.store.samples import make_key

ROOT = Path(__file__).resolve().parents[2]
VARIANT, OTHER = make_key(1).variant, make_key(2).variant


def host(folder: Path, *, server: Server | None = None) -> TieredStore:
    remote = None if server is None else server.url
    return TieredStore.from_settings(Settings(home=folder, cpu_bytes=0, disk_bytes=1 << 24, remote=remote))


def test_processes_of_one_folder(tmp_path: Path) -> None:
    with host(tmp_path) as one, host(tmp_path) as two:
        claim = one.claim(VARIANT)
        assert claim is not None and two.claim(VARIANT) is None and one.claim(VARIANT) is None
        other = two.claim(OTHER)
        assert other is not None
        claim()
        again = two.claim(VARIANT)
        assert again is not None and one.claim(VARIANT) is None
        again()
        other()
        assert not list((tmp_path / "kv" / ".claims").iterdir()), "a claim that was given back lies about"


def test_a_holder_that_dies_holds_nothing(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys, time
from tests.store.test_claims import VARIANT, host
claim = host(pathlib.Path({str(tmp_path)!r})).claim(VARIANT)
print(claim is not None, flush=True)
time.sleep(60)
"""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    holder = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "True\n"
    with host(tmp_path) as store:
        assert store.claim(VARIANT) is None
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        claim = store.claim(VARIANT)
        assert claim is not None
        claim()
    holder.stdout.close()


def test_one_of_many_threads_has_it(tmp_path: Path) -> None:
    """200 times in turn, four ask: it is never held twice, and the folder is empty afterwards."""
    holding, most, num_held = 0, 0, 0
    lock = threading.Lock()

    def ask() -> None:
        nonlocal holding, most, num_held
        with host(tmp_path) as store:
            for _ in range(50):
                while (claim := store.claim(VARIANT)) is None:
                    time.sleep(0)
                with lock:
                    holding += 1
                    most, num_held = max(most, holding), num_held + 1
                with lock:
                    holding -= 1
                claim()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, num_held) == (1, 200)
    assert not list((tmp_path / "kv" / ".claims").iterdir())


def test_two_hosts_of_one_redis(tmp_path: Path) -> None:
    with (
        ValkeyServer(tmp_path) as server,
        host(tmp_path / "one", server=server) as one,
        host(tmp_path / "two", server=server) as two,
    ):
        claim = one.claim(VARIANT)
        assert claim is not None and two.claim(VARIANT) is None
        with host(tmp_path / "two") as neighbour:  # whom its own host's part of it does not keep from it
            own = neighbour.claim(VARIANT)
            assert own is not None
            own()
        claim()
        again = two.claim(VARIANT)
        assert again is not None
        again()
        brief = one.claim(VARIANT, seconds=0.2)
        assert brief is not None and two.claim(VARIANT) is None
        time.sleep(0.3)
        taken = two.claim(VARIANT)
        assert taken is not None, "a host that is gone keeps nothing"
        brief()  # too late, and no matter
        assert one.claim(VARIANT) is None
        taken()


@pytest.mark.parametrize("how", ["dead", "stalled"])
def test_a_remote_that_does_not_answer_keeps_nobody_from_encoding(tmp_path: Path, how: str) -> None:
    with ValkeyServer(tmp_path) as server, host(tmp_path / "one", server=server) as store:
        server.kill() if how == "dead" else server.stall()
        began = time.monotonic()
        claim = store.claim(VARIANT, deadline=Deadline.after(0.2))
        assert claim is not None and time.monotonic() - began < 1.0
        if how == "stalled":
            server.go_on()
        claim()
