"""Values of any size over one connection after another, and what an answer that is no value costs."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from kvblend.store.remote import remote_objects
from kvblend.store.remote.objects import RemoteObjects
from tests.store.remote.servers import ValkeyServer

FOLDER = "model-1/00/passage"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path) as server:
        yield server


@pytest.fixture
def objects(server: ValkeyServer) -> Iterator[RemoteObjects]:
    objects = server.objects()
    yield objects
    objects.close()


@pytest.mark.parametrize("num_bytes", [0, 1, 53, 54, 55, 56, 4096, (1 << 20) + 7, 9 << 20])
def test_a_value_of_any_size(objects: RemoteObjects, num_bytes: int) -> None:
    """Also those that end within the first bytes that are received, and at their end."""
    data = bytes(range(256)) * (num_bytes // 256 + 1)
    assert objects.put(f"{FOLDER}/a", memoryview(bytearray(data[:num_bytes])))
    for _ in range(2):  # the connection is as it was
        assert bytes(objects.get(f"{FOLDER}/a")) == data[:num_bytes]
        assert objects.get(f"{FOLDER}/none") is None
    assert objects.exist([f"{FOLDER}/a"]) == {f"{FOLDER}/a"}


def test_an_error_in_place_of_a_value(server: ValkeyServer, objects: RemoteObjects) -> None:
    """It is the server's own, and the connection can be used again."""
    objects.put(f"{FOLDER}/a", memoryview(b"value"))
    redis.Redis(port=server.port).sadd(f"kvblend:{{{FOLDER}}}/list", "no string")
    for _ in range(2):
        with pytest.raises(OSError, match="WRONGTYPE"):
            objects.get(f"{FOLDER}/list")
        assert objects.get(f"{FOLDER}/a") == b"value"


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$100\r\nhalf", b"$many\r\n", b"$99999999999999\r\n", b"x" * 10_000, b""],
)
def test_what_no_redis_server_would_say(answer: bytes) -> None:
    """An OSError, and the next call begins on a connection of its own."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                while b"GET" not in (asked := client.recv(4096)):
                    client.sendall(b"+OK\r\n" * asked.count(b"*"))
                client.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    objects = remote_objects(f"redis://127.0.0.1:{listener.getsockname()[1]}")
    for _ in range(2):
        with pytest.raises(OSError):
            objects.get(f"{FOLDER}/a")
    objects.close()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
