"""Several engines behind one URL: whichever has a report or an encode order is found."""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvblend.api.engine import control, control_channels
from kvblend.api.engine.control_channels import ControlChannels
from kvblend.cli.engine import free_port
from kvblend.core.report import BlendReport
from kvblend.vllm_connector.scheduler.control import ControlServer
from tests.api.engine.test_control import INFO

REPORT = BlendReport(outcome="blended", reused_tokens=7)


@pytest.fixture
def addresses(tmp_path: Path) -> list[str]:
    return [f"ipc://{tmp_path}/{name}.sock" for name in ("one", "other")]


@pytest.fixture
def servers(addresses: list[str]) -> Iterator[list[ControlServer]]:
    made = [ControlServer(address, INFO) for address in addresses]
    yield made
    for server in made:
        server.close()


@pytest.fixture
async def channels(addresses: list[str]) -> AsyncIterator[ControlChannels]:
    made = ControlChannels(", ".join(addresses))
    yield made
    await made.close()


@pytest.mark.parametrize("number", [0, 1])
async def test_the_one_that_has_it_is_found(
    servers: list[ControlServer], channels: ControlChannels, number: int
) -> None:
    assert await channels.info() == INFO
    servers[number].set_report("known", REPORT)
    waiting = asyncio.create_task(channels.report("later", wait_s=30))
    await asyncio.sleep(0.1)
    servers[number].set_report("later", REPORT)
    async with asyncio.timeout(10):  # the others need not say that they have none
        assert await channels.report("known", wait_s=30) == REPORT
        assert await waiting == REPORT
    servers[number].set_encoded("done", None)
    servers[number].set_encoded("lost", "no room")
    async with asyncio.timeout(10):
        done, lost = await asyncio.gather(channels.encoded("done", wait_s=30), channels.encoded("lost", wait_s=30))
    assert done and done.encoded is True
    assert lost and (lost.encoded, lost.error) == (False, "no room")


async def test_what_none_has_is_not_known(servers: list[ControlServer], channels: ControlChannels) -> None:
    assert await channels.report("unknown") is None
    unknown = await channels.encoded("unknown")
    assert unknown is not None and unknown.encoded is None


async def test_one_is_enough(addresses: list[str], channels: ControlChannels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.3)
    assert await channels.info() is None
    assert await channels.encoded("any") is None
    server = ControlServer(addresses[1], INFO)
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 10.0)
    try:
        async with asyncio.timeout(5):
            assert await channels.info() == INFO
        server.set_report("known", REPORT)
        assert await channels.report("known") == REPORT
    finally:
        server.close()


async def test_a_name_stands_for_all_its_addresses_which_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a headless Service's name does: engines come and go behind it, and it may not be known for a while."""
    port, known = free_port(), ["127.0.0.1", "127.0.0.2"]
    asked = socket.getaddrinfo

    def looked_up(host: Any, *given: Any, **options: Any) -> Any:
        if host != "engines.example":
            return asked(host, *given, **options)
        if not known:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in known]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    monkeypatch.setattr(control_channels, "RESOLVE_EVERY_S", 0.0)
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.5)
    servers = {each: ControlServer(f"tcp://{each}:{port}", INFO) for each in ("127.0.0.1", "127.0.0.2", "127.0.0.3")}
    channels = ControlChannels(f"tcp://engines.example:{port}")
    try:
        for each, server in servers.items():
            server.set_report(each, REPORT)
        assert [await channels.report(each) for each in servers] == [REPORT, REPORT, None]
        known[:] = ["127.0.0.2", "127.0.0.3"]
        async with asyncio.timeout(20):  # they are looked up beside the requests
            while [await channels.report(each) for each in servers] != [None, REPORT, REPORT]:
                pass
        known.clear()
        for _ in range(3):
            assert [await channels.report(each) for each in servers] == [None, REPORT, REPORT]
    finally:
        await channels.close()
        for server in servers.values():
            server.close()


@pytest.mark.parametrize("bound", ["tcp://[::1]:{}", "tcp://*:{}"])
async def test_a_name_of_ipv6_alone_is_its_addresses(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """Control: one that has an address of IPv4, too, stands for that alone, since it is one engine."""
    port, known = free_port(), [(socket.AF_INET6, "::1")]
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *given, **options: [(family, socket.SOCK_STREAM, 6, "", (each, port)) for family, each in known],
    )
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.5)
    server = ControlServer(bound.format(port), INFO)
    server.set_report("known", REPORT)
    try:
        for each in (f"tcp://engines.example:{port}", f"tcp://[::1]:{port}"):
            channels = ControlChannels(each)
            assert await channels.report("known") == REPORT
            await channels.close()
        known.append((socket.AF_INET, "127.0.0.3"))
        channels = ControlChannels(f"tcp://engines.example:{port}")
        assert await channels.report("known") == (REPORT if "*" in bound else None)
        await channels.close()
    finally:
        server.close()


async def test_no_report_waits_for_a_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the addresses are known: it may hang for as long as it likes."""
    port, answers = free_port(), threading.Event()

    def looked_up(host: Any, *given: Any, **options: Any) -> Any:
        answers.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    monkeypatch.setattr(control_channels, "RESOLVE_EVERY_S", 0.0)
    server, channels = ControlServer(f"tcp://127.0.0.1:{port}", INFO), ControlChannels(f"tcp://engines.example:{port}")
    server.set_report("known", REPORT)
    try:
        answers.set()
        assert await channels.report("known") == REPORT
        answers.clear()
        async with asyncio.timeout(10):
            for _ in range(3):
                assert await channels.report("known") == REPORT
    finally:
        answers.set()
        await channels.close()
        server.close()


async def test_a_name_that_is_not_known_is_said(caplog: pytest.LogCaptureFixture) -> None:
    channels = ControlChannels("tcp://nowhere.invalid:1")
    with caplog.at_level(logging.WARNING):
        assert await channels.info() is None
    await channels.close()
    assert "nowhere.invalid is not found" in caplog.text
