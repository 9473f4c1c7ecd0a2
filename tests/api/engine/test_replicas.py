"""Several vLLM servers, of which some hang, refuse or want a key."""

import asyncio
import contextlib
import logging
import statistics
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from kvblend.api.engine import client, control
from kvblend.api.engine.replicas import EngineFacts, Replica, Replicas
from kvblend.core.errors import EngineUnavailableError
from tests.api.scripted_engine import ScriptedEngine
from tests.api.scripted_service import ScriptedService, scripted_service

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}]}


@pytest.fixture
def engines() -> Iterator[list[ScriptedEngine]]:
    with ExitStack() as stack:
        engines = [ScriptedEngine(), ScriptedEngine()]
        for each in engines:
            stack.enter_context(each.running())
        yield engines


@pytest.fixture
async def replicas(
    engines: list[ScriptedEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Replicas]:
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(client, "PROBE_TIMEOUT_S", 2.0)
    replicas = Replicas([Replica(each.url, f"ipc://{tmp_path}/{index}.sock") for index, each in enumerate(engines)])
    yield replicas
    await replicas.close()


async def test_a_hung_server_costs_many_requests_one_time_limit(
    engines: list[ScriptedEngine], replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them wait for one question, and the next one asks none."""
    monkeypatch.setattr("kvblend.api.engine.replicas.RETRY_DOWN_S", 600.0)
    engines[0].hangs = engines[1].hangs = True
    answers = await asyncio.gather(*(replicas.choose() for _ in range(10)), return_exceptions=True)
    assert all(isinstance(answer, EngineUnavailableError) for answer in answers)
    with pytest.raises(EngineUnavailableError):
        await replicas.choose()
    assert [len(each.headers) for each in engines] == [1, 1], "it is not asked again at once"


async def test_a_hung_server_is_passed_over_and_comes_back(engines: list[ScriptedEngine], replicas: Replicas) -> None:
    engines[0].hangs = True
    await replicas.choose()
    waits = []
    for _ in range(30):
        began = time.monotonic()
        replica, _ = await replicas.choose()
        assert replica.engine.url == engines[1].url
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.1)
    assert statistics.median(waits) < 1.0, "they wait for the hung one, which takes 2 s"
    engines[0].hangs = False
    async with asyncio.timeout(240):
        while (await replicas.choose())[0].engine.url != engines[0].url:  # noqa: ASYNC110 (asked in the background)
            await asyncio.sleep(0.05)


async def test_one_that_hangs_later_is_passed_over_too(
    engines: list[ScriptedEngine], replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvblend.api.engine.replicas.WATCH_EVERY_S", 0.2)
    monkeypatch.setattr("kvblend.api.engine.replica.PATIENCE_S", 1.0)
    replicas.start()
    while not all(each.is_known for each in replicas._replicas):
        await replicas.choose()
    engines[0].hangs = True
    with replicas._replicas[1].load.request():  # so that the other looks idle
        async with asyncio.timeout(240):
            while (await replicas.choose())[0].engine.url != engines[1].url:  # noqa: ASYNC110 (seen in the background)
                await asyncio.sleep(0.05)


async def test_an_answer_waits_for_its_server_to_come_back(
    engines: list[ScriptedEngine], replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvblend.api.engine.replicas.SECOND_TRY_S", 20.0)
    asked: list[str] = []

    async def ask(replica: Replica, facts: EngineFacts) -> AsyncGenerator[str, None]:
        with replica.request():
            asked.append(replica.engine.url)
            if len(asked) == 1:
                engines[0].hangs = engines[1].hangs = True
                asyncio.get_running_loop().call_later(2.0, come_back)
                raise EngineUnavailableError("it died")
            yield facts.model

    def come_back() -> None:
        engines[0].hangs = engines[1].hangs = False

    assert [item async for item in replicas.answers(ask)] == ["scripted"] and len(asked) == 2


async def test_a_server_that_says_nonsense_is_asked_again_later(tmp_path: Path) -> None:
    """Whatever it is that it says: an error that nobody expected must not leave the breaker waiting for its end."""
    engine = ScriptedEngine(max_model_len="many")  # type: ignore[arg-type]
    with engine.running():
        replicas = Replicas([Replica(engine.url, f"ipc://{tmp_path}/control.sock")])
        with pytest.raises(EngineUnavailableError, match="ValueError"):
            await replicas.choose()
        engine.max_model_len = 1000
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(EngineUnavailableError):
                    await replicas.choose()
                    break
                await asyncio.sleep(0.1)
        await replicas.close()


@pytest.fixture(scope="module")
def scripted(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    folder = tmp_path_factory.mktemp("replicas")
    key: dict[str, Any] = {"engine_api_key": SecretStr("of the engine")}
    with scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path, **key) as service:
        yield service
        service.engine.refusal = None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 422, 429, 499])
def test_what_vllm_refuses_keeps_its_status(scripted: ScriptedService, status: int, stream: bool) -> None:
    scripted.engine.refusal = (status, {"error": {"message": "not so", "param": "seed", "type": "x", "code": status}})
    for body in (CHAT, {**CHAT, "kvblend": {"documents": ["A passage."]}}):
        answer = httpx.post(f"{scripted.url}/v1/chat/completions", json={**body, "stream": stream}, timeout=60)
        assert answer.status_code == status, answer.text
        assert (answer.json()["error"]["message"], answer.json()["error"]["param"]) == ("not so", "seed")
    scripted.engine.refusal = None


def test_a_key_that_vllm_does_not_take_is_the_services_fault(scripted: ScriptedService) -> None:
    scripted.engine.refusal = (401, {"error": "Unauthorized"})
    answer = httpx.post(f"{scripted.url}/v1/chat/completions", json=CHAT, timeout=60)
    assert answer.status_code == 503 and "KVBLEND_ENGINE_API_KEY" in answer.json()["error"]["message"]
    scripted.engine.refusal = None


def test_vllm_gets_its_key_and_nobody_else(scripted: ScriptedService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    del scripted.engine.headers[:]
    headers = {"Authorization": "Bearer of the client"}
    answer = httpx.post(f"{scripted.url}/v1/chat/completions", json=CHAT, headers=headers, timeout=60)
    assert answer.status_code == 200
    assert {each["authorization"] for each in scripted.engine.headers} == {"Bearer of the engine"}
    assert "of the engine" not in caplog.text and "of the engine" not in answer.text
