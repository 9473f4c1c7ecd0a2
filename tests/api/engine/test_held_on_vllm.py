"""Two real vLLM servers with tiers of their own: a prompt goes where its passages lie."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvblend.api.engine.choice import Wanted
from kvblend.api.engine.replicas import Replica, Replicas
from kvblend.api.kv.encode_context import NO_CONTEXT
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.encoder import Encoder, EncodeResult
from kvblend.api.kv.passage_kv import PassageKV
from kvblend.api.metrics import Metrics
from kvblend.cli.engine import engine_command, engine_environment, free_port
from kvblend.cli.server_process import ServerProcess
from kvblend.core.settings import Settings
from kvblend.store import TieredStore

pytestmark = pytest.mark.extended

START_TIMEOUT_S = 400.0
WORD = (10, 400)
"""Token ids that every tiny model has."""


@dataclass(frozen=True)
class Host:
    """As a pod has it: a vLLM server, and tiers that no other one sees."""

    folder: Path
    port: int

    @property
    def control(self) -> str:
        return f"ipc://{self.folder}/control.sock"

    @property
    def settings(self) -> dict[str, Any]:
        return {"home": self.folder, "cpu_bytes": 0, "disk_path": self.folder / "disk", "disk_bytes": 1 << 28}

    def replica(self) -> Replica:
        return Replica(f"http://127.0.0.1:{self.port}", self.control)


@pytest.fixture(scope="module")
def hosts(
    tiny_model_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, dtype: str
) -> Iterator[list[Host]]:
    hosts = [Host(tmp_path_factory.mktemp(f"host{number}"), free_port()) for number in range(2)]
    with ExitStack() as closing:
        processes = []
        for host in hosts:
            own = {f"KVBLEND_{name.upper()}": str(value) for name, value in host.settings.items()}
            extra = ["--max-num-seqs", "8", "--enforce-eager"]
            model = str(tiny_model_path("llama3rope"))
            process = ServerProcess(
                f"vLLM at {host.port}",
                engine_command(model, port=host.port, dtype=dtype, max_model_len=2048, extra=extra),
                environment={**engine_environment(control=host.control), **own, "OMP_NUM_THREADS": "1"},
                log_path=host.folder / "vllm.log",
                health_url=f"http://127.0.0.1:{host.port}/health",
            )
            closing.callback(process.stop)
            process.start()
            processes.append(process)
        for process in processes:
            process.wait_ready(timeout_s=START_TIMEOUT_S)
        yield hosts


@pytest.fixture
async def fleet(hosts: list[Host]) -> AsyncIterator[Replicas]:
    replicas = Replicas([host.replica() for host in hosts])
    await asyncio.gather(*(replica.facts() for replica in replicas._replicas))
    yield replicas
    await replicas.close()


async def encode(host: Host, runs: list[EncodeRun]) -> None:
    """As a service on that host does."""
    async with AsyncExitStack() as closing:
        passage_kv = PassageKV(TieredStore.from_settings(Settings(**host.settings)))
        closing.push_async_callback(passage_kv.close)
        replicas = Replicas([host.replica()])
        closing.push_async_callback(replicas.close)
        encoder = Encoder(replicas, passage_kv, Metrics())
        closing.push_async_callback(encoder.close)
        for run in runs:
            assert await encoder.encode_one(run) is EncodeResult.STORED


async def test_a_prompt_goes_where_its_passages_lie(hosts: list[Host], fleet: Replicas) -> None:
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
