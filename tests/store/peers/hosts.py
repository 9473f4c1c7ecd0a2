"""Hosts for tests of peers: each has folders and a peer process of its own."""

import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Self

import torch

from kvblend.cli.engine import free_port
from kvblend.core.settings import Settings, WritePolicy
from kvblend.store import NEVER, CPUTier, Deadline, PassageKVKey, TieredStore
from kvblend.store.content import TensorContent
from kvblend.store.peers import PeerTier
from kvblend.store.peers.host_folder import process_id, try_lock
from tests.store.samples import SHAPE, make_key, make_kv

__all__ = ["AMPLE_S", "DEADLINE_S", "LARGE", "SLACK_S", "Host", "MakeHost", "fetch_in_time", "until"]

DEADLINE_S = 0.2
"""What a call gets that is to miss it."""
SLACK_S = 3.0
"""By which a busy machine may be late; who heeds no deadline takes `LONGEST_READ_S`, or for ever."""
AMPLE_S = 20.0
"""What a call gets that is to be answered, however busy the machine is."""
LARGE = (24, 2, 256, 2, 64)
"""The shape of a passage KV of 6.3 MB."""

MakeHost = Callable[..., "Host"]


class Host:
    """A store of its own folders that serves peers, and reads from those that are named: by a real process each."""

    def __init__(
        self,
        folder: Path,
        *peers: "Host",
        token: str | None = "a token",
        serves: bool = True,
        write: WritePolicy = "disk",
        cpu_bytes: int = 1 << 28,
        remote: str | None = None,
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        addresses = ",".join(peer.address for peer in peers)
        self.settings = Settings(
            cpu_path=folder / "cpu",
            cpu_bytes=cpu_bytes,
            disk_path=folder / "disk",
            disk_bytes=1 << 28,
            write=write,
            remote=remote or (f"nixl://{addresses}" if peers else None),
            peer_address=self.address if serves else None,
            peer_token=token,
        )
        self._is_closed = False
        self.store = TieredStore.from_settings(self.settings)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def peers(self) -> PeerTier:
        (tier,) = self.store.remotes
        assert isinstance(tier, PeerTier)
        return tier

    @property
    def cpu_tier(self) -> CPUTier:
        tier = self.store.bounded[0]
        assert isinstance(tier, CPUTier)
        return tier

    @property
    def pid(self) -> int:
        """Of its peer process."""
        pid = process_id(self.settings.cpu_path)
        assert pid is not None
        return pid

    def put(self, *numbers: int, shape: tuple[int, ...] = SHAPE) -> None:
        """In its CPU tier alone."""
        for number in numbers:
            kv = TensorContent(make_key(number), make_kv(number, shape=shape), capture_position=number)
            self.cpu_tier.put(kv, NEVER)

    def kill(self) -> None:
        """Its peer process; the store starts it again by itself."""
        os.kill(self.pid, signal.SIGKILL)

    def kill_for_good(self) -> None:
        self.close()
        if not self.is_gone():
            with suppress(ProcessLookupError):
                self.kill()
        until(self.is_gone)

    def stall(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def is_gone(self) -> bool:
        """Its peer process."""
        lock = try_lock(self.settings.cpu_path)
        if lock is not None:
            os.close(lock)
        return lock is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()
        self.close()
        until(self.is_gone)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.store.close()


def fetch_in_time(
    tier: PeerTier, numbers: Collection[int], *, shape: tuple[int, ...] = SHAPE, deadline_s: float = DEADLINE_S
) -> set[PassageKVKey]:
    """What a request gets within its deadline; whatever that is, it is right, and costs no more."""
    keys = {make_key(number): number for number in numbers}
    began = time.monotonic()
    files = tier.fetch_many(keys, Deadline.after(deadline_s))
    spent = time.monotonic() - began
    assert spent < deadline_s + SLACK_S, f"{spent:.3f} s"
    for key, file in files.items():
        assert torch.equal(file.read(), make_kv(keys[key], shape=shape))
    return set(files)


def until(holds: Callable[[], object], *, within_s: float = 120.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
