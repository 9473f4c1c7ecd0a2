"""Peers over the network path of NIXL, or none of these tests where its wheel cannot be imported."""

from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.store.peers.hosts import Host, MakeHost


@pytest.fixture(autouse=True)
def over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("nixl_cu12") is None:
        pytest.skip("the package nixl-cu12 is not installed: it has wheels for Linux alone")
    monkeypatch.setenv("UCX_TLS", "tcp")


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    """Hosts of their own folders, by name; nothing of them outlives the test."""
    with ExitStack() as closing:

        def make(name: str, *peers: Host, **options: object) -> Host:
            return closing.enter_context(Host(tmp_path / name, *peers, **options))  # type: ignore[arg-type]

        yield make
