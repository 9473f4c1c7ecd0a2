"""Peers over the network path of NIXL, or none of these tests where its wheel cannot be imported."""

from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace

import pytest

from kvblend.store.peers import host_process
from tests.store.peers.forked_process import ForkedProcess
from tests.store.peers.hosts import Host, MakeHost


@pytest.fixture(autouse=True)
def over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("nixl_cu12") is None:
        pytest.skip("the package nixl-cu12 is not installed: it has wheels for Linux alone")
    monkeypatch.setenv("UCX_TLS", "tcp")


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process starts; what `store_process.py` starts, in a process of its own, is as it is anywhere."""
    monkeypatch.setattr(host_process, "subprocess", SimpleNamespace(Popen=ForkedProcess, PIPE=PIPE))


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    """Hosts of their own folders, by name; nothing of them outlives the test."""
    with ExitStack() as closing:

        def make(name: str, *peers: Host, **options: object) -> Host:
            return closing.enter_context(Host(tmp_path / name, *peers, **options))  # type: ignore[arg-type]

        yield make
