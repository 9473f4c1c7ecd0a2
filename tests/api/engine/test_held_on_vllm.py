"""Two real vLLM servers with tiers of their own: a prompt goes where its passages lie."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from kvblend.api.engine.choice import Wanted
from kvblend.api.engine.replicas import Replica, Replicas
from kvblend.api.kv.encode_context import NO_CONTEXT
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.encoder import Encoder, EncodeResult
from kvblend.api.kv.passage_kv import PassageKV
from kvblend.api.metrics import Metrics
from kvblend.cli.engine import free_port
from kvblend.core.settings import Settings
from kvblend.store import TieredStore
from tests.api.engine.vllm_servers import VLLMServer, running_servers

pytestmark = pytest.mark.extended

WORD = (10, 400)
"""Token ids that every tiny model has."""


@pytest.fixture(scope="module")
def hosts(
    tiny_model_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, dtype: str
) -> Iterator[list[VLLMServer]]:
    """As pods have it: each with tiers that no other one sees."""
    hosts = []
    for number in range(2):
        folder = tmp_path_factory.mktemp(f"host{number}")
        settings = {"home": folder, "cpu_bytes": 0, "disk_path": folder / "disk", "disk_bytes": 1 << 28}
        hosts.append(VLLMServer(free_port(), f"ipc://{folder}/control.sock", settings, folder / "vllm.log"))
    with running_servers(hosts, model=tiny_model_path("llama3rope"), dtype=dtype):
        yield hosts


@pytest.fixture
async def fleet(hosts: list[VLLMServer]) -> AsyncIterator[Replicas]:
    replicas = Replicas([Replica(host.url, host.control) for host in hosts])
    await asyncio.gather(*(replica.facts() for replica in replicas._replicas))
    yield replicas
    await replicas.close()


async def encode(host: VLLMServer, runs: list[EncodeRun]) -> None:
    """As a service on that host does."""
    async with AsyncExitStack() as closing:
        passage_kv = PassageKV(TieredStore.from_settings(Settings(**host.settings)))
        closing.push_async_callback(passage_kv.close)
        replicas = Replicas([Replica(host.url, host.control)])
        closing.push_async_callback(replicas.close)
        encoder = Encoder(replicas, passage_kv, Metrics())
        closing.push_async_callback(encoder.close)
        for run in runs:
            assert await encoder.encode_one(run) is EncodeResult.STORED


async def test_a_prompt_goes_where_its_passages_lie(hosts: list[VLLMServer], fleet: Replicas) -> None:
    chance = random.Random(0)
    passages = [tuple(chance.randint(*WORD) for _ in range(90)) for _ in range(5)]
    runs = [EncodeRun.alone(NO_CONTEXT, passage) for passage in passages]
    await encode(hosts[0], runs[:3])
    await encode(hosts[1], runs[3:])
    names = [run.names[0] for run in runs]
    assert await fleet.held(names) == {*names}

    async def chosen(*numbers: int) -> int:
        wanted = Wanted([(90, [names[number]]) for number in numbers], "session")
        replica, facts = await fleet.choose(wanted)
        assert facts.info is not None and len(facts.info.places) == 1
        return fleet._replicas.index(replica)

    assert [await chosen(*each) for each in ((0,), (4,), (1, 2, 3), (2, 3, 4))] == [0, 1, 0, 1]

    busy = [
        asyncio.create_task(
            fleet._replicas[0].engine.post("/v1/completions", {"prompt": list(passages[0]), "max_tokens": 1500})
        )
        for _ in range(4)
    ]  # by somebody else: this service counts none of them
    try:
        async with asyncio.timeout(60):
            while await chosen(0, 1, 2) == 0:  # noqa: ASYNC110 (another process counts them)
                await asyncio.sleep(0.05)
    finally:
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
    async with asyncio.timeout(60):  # the engine is told that its clients have left
        while await chosen(0, 1, 2) == 1:  # noqa: ASYNC110 (as above)
            await asyncio.sleep(0.05)
