"""The service's end of the control channel against the connector's."""

import asyncio
from pathlib import Path

import pytest

from kvblend.api.engine import control
from kvblend.api.engine.control import ControlClient
from kvblend.core.control import EngineInfo
from kvblend.core.report import BlendReport

INFO = EngineInfo(
    model="m",
    model_fingerprint="f",
    dtype="float32",
    block_size=16,
    max_model_len=128,
    head_ranges=[(0, 1), (1, 2)],
    token_bytes=1024,
    default_recompute_ratio=0.15,
)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/control.sock"


async def test_it_asks_the_connectors_server(address: str) -> None:
    from kvblend.vllm_connector.scheduler.control import ControlServer

    server = ControlServer(address, INFO)
    client = ControlClient(address)
    try:
        assert await client.info() == INFO
        assert await client.report("unknown") is None
        waiting = asyncio.create_task(client.report("later", wait_s=10))
        await asyncio.sleep(0.1)
        report = BlendReport(outcome="blended", reused_tokens=7)
        server.set_report("later", report)
        assert await waiting == report
        server.set_encoded("done", None)
        server.set_encoded("lost", "no room")
        done, lost, unknown = await asyncio.gather(*(client.encoded(name) for name in ("done", "lost", "unknown")))
        assert done and done.encoded is True
        assert lost and (lost.encoded, lost.error) == (False, "no room")
        assert unknown and unknown.encoded is None
    finally:
        await client.close()
        server.close()


async def test_silence_is_none_until_a_server_comes(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvblend.vllm_connector.scheduler.control import ControlServer

    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.3)
    client = ControlClient(address)
    try:
        assert await client.info() is None
        for _ in range(2):  # it goes and comes back, as vLLM does
            server = ControlServer(address, INFO)
            monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 10.0)
            assert await client.info() == INFO
            server.close()
    finally:
        await client.close()
