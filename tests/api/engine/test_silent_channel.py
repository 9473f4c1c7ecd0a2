"""A vLLM server whose control channel says nothing: it answers by plain prefill, from all that it was given."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvblend.api import ServiceConfig
from kvblend.api.engine import control, replica
from kvblend.api.engine.replica import Replica
from kvblend.core.settings import Settings
from tests.api.front import running
from tests.api.scripted_engine import ScriptedEngine

TEXT = "The lamp of Vik burns seal oil."


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    engine = ScriptedEngine()
    with engine.running():
        yield engine


def test_a_chats_passages_are_in_its_messages(
    engine: ScriptedEngine, tmp_path: Path, demo_model_path: Path, embedding_model_path: Path
) -> None:
    """A proxy may stand there that lets no prompt of tokens through: the question would be answered without them."""
    config = ServiceConfig(
        model=str(demo_model_path),
        embedding_model=embedding_model_path,
        engines=[(engine.url, f"ipc://{tmp_path}/silent.sock")],
        settings=Settings(home=tmp_path / "home", cpu_bytes=0, disk_bytes=1 << 30),
    )
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "What does it burn?"}]}
    with running(config) as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json={**chat, "kvblend": {"documents": [TEXT]}}, timeout=60)
    assert answer.status_code == 200, answer.text
    report = answer.json()["kvblend"]["report"]
    assert (report["outcome"], report["reason"]) == ("prefilled", "the vLLM server has no control channel of kvblend")
    (sent,) = [body for body in engine.bodies if "messages" in body]
    assert TEXT in str(sent["messages"]) and "prompt_token_ids" not in (sent.get("kv_transfer_params") or {})


async def test_no_request_waits_for_it_again(
    engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 5.0)
    monkeypatch.setattr(replica, "RETRY_INFO_S", 0.0)
    server = Replica(engine.url, f"ipc://{tmp_path}/silent.sock")
    try:
        assert (await server.facts()).info is None
        began = time.monotonic()
        for _ in range(20):
            assert (await server.facts()).info is None
            await asyncio.sleep(0.01)
        assert time.monotonic() - began < 4.0
    finally:
        await server.close()
