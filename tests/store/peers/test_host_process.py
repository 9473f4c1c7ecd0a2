"""One peer process a host, whatever becomes of the processes that need it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from kvblend.cli.engine import free_port
from kvblend.core.errors import InvalidRequestError
from kvblend.core.settings import Settings
from kvblend.store import TieredStore
from kvblend.store.peers.addresses import listen_address, peer_addresses
from kvblend.store.peers.host_folder import process_id, try_lock
from tests.store.peers.hosts import AMPLE_S, MakeHost, fetch_in_time, until
from tests.store.tier_contract import keys


class StoreProcess:
    def __init__(self, settings: dict[str, object]) -> None:
        self.folder = Path(str(settings["cpu_path"]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.store.peers.store_process", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])},
        )

    def is_open(self) -> bool:
        return self._line() == "open"

    def ask(self, text: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()
        return self._line()

    def end(self, *, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def settings_of(folder: Path, **options: object) -> dict[str, object]:
    sizes = {"cpu_bytes": 1 << 24, "disk_bytes": 1 << 24}
    return {"cpu_path": str(folder / "cpu"), "disk_path": str(folder / "disk"), **sizes, **options}


def is_alive(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text()


def test_stores_of_four_processes_on_two_hosts(tmp_path: Path) -> None:
    """Those of one host share a peer process, which outlives the one that started it, and ends with the last."""
    port = free_port()
    one = settings_of(tmp_path / "one", peer_address=f"127.0.0.1:{port}", peer_token="a token")
    other = settings_of(tmp_path / "other", remote=f"nixl://127.0.0.1:{port}", peer_token="a token")
    stores = [StoreProcess(settings) for settings in (one, one, other, other)]
    assert all([store.is_open() for store in stores])
    pids = {process_id(store.folder) for store in stores}
    assert len(pids) == 2
    assert stores[0].ask("put 1") == stores[1].ask("put 2") == "ok"
    assert stores[2].ask("fetch 1") == stores[3].ask("fetch 2") == "ok"
    assert stores[2].ask("fetch 9") == "miss"
    stores[0].end(kill=True)
    stores[2].end()
    time.sleep(1.0)
    assert stores[1].ask("put 3") == "ok"
    until(lambda: stores[3].ask("fetch 3") == "ok")
    for store in (stores[1], stores[3]):
        assert is_alive(process_id(store.folder))
        store.end(kill=store is stores[1])
    until(lambda: not any(is_alive(pid) for pid in pids))


def test_one_that_died_is_started_again_by_who_is_left(tmp_path: Path) -> None:
    port = free_port()
    one = settings_of(tmp_path / "one", peer_address=f"127.0.0.1:{port}")
    stores = [StoreProcess(one), StoreProcess(one)]
    assert all([store.is_open() for store in stores])
    stores[0].end(kill=True)
    first = process_id(stores[1].folder)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: process_id(stores[1].folder) not in (None, first))
    second = process_id(stores[1].folder)
    until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    stores[1].end()
    until(lambda: not is_alive(second))


def test_an_address_that_is_taken_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(**settings_of(tmp_path, peer_address=f"127.0.0.1:{taken.getsockname()[1]}"))  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="cannot be listened on: "):
            TieredStore.from_settings(settings)
    lock = try_lock(tmp_path / "cpu")
    assert lock is not None, "the peer process lives"
    os.close(lock)


def test_a_folder_whose_name_is_longer_than_a_sockets_may_be(make_host: MakeHost) -> None:
    one = make_host("one" * 40)
    other = make_host("other" * 40, one)
    one.put(1)
    assert fetch_in_time(other.peers, [1], deadline_s=AMPLE_S) == keys(1)


@pytest.mark.parametrize(
    "sent",
    [b"", b"\xff" * 64, b"\x00\x00\x00\x02{}", b"\x00\x02\x00\x00", b"GET"],
    ids=["nothing", "noise", "no proof", "too long", "half a length"],
)
def test_a_client_that_speaks_something_else(make_host: MakeHost, sent: bytes) -> None:
    """It is dropped within the time of a greeting, and others are served meanwhile."""
    one = make_host("one")
    other = make_host("other", one)
    one.put(1)
    with socket.create_connection(("127.0.0.1", one.port)) as client:
        client.settimeout(60.0)
        client.sendall(sent)
        assert b"nonce" in client.recv(4096)
        assert fetch_in_time(other.peers, [1], deadline_s=AMPLE_S) == keys(1)
        with suppress(ConnectionResetError):
            assert client.recv(4096) == b""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peer_address": "127.0.0.1"}, "'127.0.0.1' is no address host:port"),
        ({"peer_address": "host:70000"}, "'host:70000' is no address"),
        ({"peer_address": "0.0.0.0:7000"}, "needs a KVBLEND_PEER_TOKEN that all peers share"),
        ({"remote": "nixl://"}, "KVBLEND_REMOTE's '' is no address"),
        ({"remote": "nixl://one:1,two"}, "'two' is no address"),
        ({"remote": "nixl://hunter2@one:1"}, "credentials in an address"),
        ({"remote": "nixl://one:1 nixl://two:1"}, "names peers 2 times"),
    ],
)
def test_addresses_that_are_none_are_refused(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        TieredStore.from_settings(Settings(**settings_of(tmp_path, **options)))  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)


def test_addresses() -> None:
    settings = Settings(remote="redis://one:1 nixl://one:7000,[::1]:7001,one:7000/", peer_address="[::1]:9")
    assert [str(address) for address in peer_addresses(settings)] == ["one:7000", "[::1]:7001"]
    address = listen_address(settings)
    assert address is not None and tuple(address) == ("::1", 9)
    assert peer_addresses(Settings()) == [] and listen_address(Settings()) is None


def test_no_connection_is_lost_by_a_process_that_was_held_up(make_host: MakeHost) -> None:
    """One that came when a time limit of the accepting ran out was."""
    one = make_host("one")
    process = one.store._peer_process
    assert process is not None
    for _ in range(3):
        one.stall()
        with ThreadPoolExecutor(1) as threads:
            connecting = threads.submit(process.connect, 60.0)
            time.sleep(0.5)
            one.go_on()
            connection, ring = connecting.result()
        os.close(ring)
        connection.close()


def test_a_store_that_is_closed_while_its_peer_process_is_started_again_leaves_none(make_host: MakeHost) -> None:
    one = make_host("one")
    first = one.pid
    one.kill()
    until(lambda: process_id(one.settings.cpu_path) not in (None, first))  # it has begun, and is not ready
    one.close()
    until(one.is_gone)
