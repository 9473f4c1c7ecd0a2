"""Two real vLLM servers at once on one folder, each with a service's encoder of its own."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvblend.api.engine.replicas import Replica, Replicas
from kvblend.api.kv.encode_context import NO_CONTEXT, EncodeContext
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.encoder import Encoder, EncodeResult
from kvblend.api.kv.passage_kv import PassageKV
from kvblend.api.metrics import Metrics
from kvblend.cli.engine import free_port
from kvblend.core.report import BlendReport
from kvblend.core.settings import Settings
from kvblend.store import TieredStore
from tests.api.engine.vllm_servers import VLLMServer, running_servers

WORD = (10, 400)
"""Token ids that every tiny model has."""
chance = random.Random(0)


@dataclass(frozen=True)
class Shared:
    """Two servers and the folders of both."""

    folder: Path
    ports: tuple[int, int]

    def control(self, number: int) -> str:
        return f"ipc://{self.folder}/{number}.sock"

    @property
    def settings(self) -> dict[str, Any]:
        tiers = {"cpu_path": self.folder / "cpu", "disk_path": self.folder / "disk"}
        return {"home": self.folder, **tiers, "cpu_bytes": 1 << 28, "disk_bytes": 1 << 28}

    def files(self) -> dict[str, tuple[int, int, bytes]]:
        """Every passage KV file of both tiers: which it is, when it was written, and its bytes."""
        found = {}
        for path in self.folder.rglob("*.kv"):
            status = path.stat()
            found[str(path.relative_to(self.folder))] = (status.st_ino, status.st_size, path.read_bytes())
        return found

    def num_requests(self) -> int:
        """That both servers have answered so far."""
        lines = [
            line for port in self.ports for line in httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        ]
        return sum(
            int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith("vllm:request_success_total")
        )


@pytest.fixture(scope="module")
def shared(
    tiny_model_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, dtype: str
) -> Iterator[Shared]:
    shared = Shared(tmp_path_factory.mktemp("shared"), (free_port(), free_port()))
    servers = [
        VLLMServer(port, shared.control(number), shared.settings, shared.folder / f"{number}.log")
        for number, port in enumerate(shared.ports)
    ]
    with running_servers(servers, model=tiny_model_path("llama3rope"), dtype=dtype):
        yield shared


@dataclass(frozen=True)
class Service:
    """What a service has of a server and the store."""

    encoder: Encoder
    replica: Replica

    async def encode(self, context: EncodeContext, passage: tuple[int, ...]) -> EncodeResult:
        return await self.encoder.encode_one(EncodeRun.alone(context, passage))

    async def blend(self, prompt: list[int], spans: list[dict[str, Any]]) -> tuple[str, BlendReport]:
        facts = await self.replica.facts()
        report_id = uuid.uuid4().hex
        plan = {"spans": spans, "recompute_ratio": 0.2, "selector": "probe"}
        body = {
            "model": facts.model,
            "prompt": prompt,
            "max_tokens": 8,
            "temperature": 0.0,
            "ignore_eos": True,
            "kv_transfer_params": {"kvblend": {"report_id": report_id, "blend": plan}},
        }
        answer = await self.replica.engine.post("/v1/completions", body)
        report = await self.replica.control.report(report_id, wait_s=10.0)
        assert report is not None
        return str(answer["choices"][0]["text"]), report


@pytest.fixture
async def services(shared: Shared) -> AsyncIterator[list[Service]]:
    async with AsyncExitStack() as closing:
        made = []
        for number, port in enumerate(shared.ports):
            passage_kv = PassageKV(TieredStore.from_settings(Settings(**shared.settings)))
            closing.push_async_callback(passage_kv.close)
            replica = Replica(f"http://127.0.0.1:{port}", shared.control(number))
            replicas = Replicas([replica])
            closing.push_async_callback(replicas.close)
            encoder = Encoder(replicas, passage_kv, Metrics())
            closing.push_async_callback(encoder.close)
            made.append(Service(encoder, replica))
        yield made


def words(count: int) -> tuple[int, ...]:
    return tuple(chance.randint(*WORD) for _ in range(count))


async def test_what_one_has_encoded_the_other_blends(shared: Shared, services: list[Service]) -> None:
    """Reference: the blend of the server that encoded. Ours: that of the other one, out of the same files."""
    one, other = services
    preamble, passages = words(33), [words(90 + number) for number in range(3)]
    context = EncodeContext((*preamble, *words(43)), len(preamble))
    assert await one.encode(NO_CONTEXT, preamble) is EncodeResult.STORED
    for passage in passages:
        assert await one.encode(context, passage) is EncodeResult.STORED
    async with asyncio.timeout(30):  # the copy in the other tier is made behind the answer
        while len(files := shared.files()) < 2 * 4:  # noqa: ASYNC110 (other processes write them)
            await asyncio.sleep(0.05)
    for name, (_, _, content) in files.items():
        if name.startswith("cpu/"):
            assert files[name.replace("cpu/", "disk/", 1)][2] == content

    prompt = [*preamble, *(token for passage in passages for token in passage), *words(14)]
    spans: list[dict[str, Any]] = [{"kind": "exact", "num_tokens": len(preamble)}]
    spans += [{"kind": "passage", "num_tokens": len(own), "encode_contexts": [context.hash]} for own in passages]
    (expected, first), (text, report) = await one.blend(prompt, spans), await other.blend(prompt, spans)
    assert first.outcome == report.outcome == "blended" and report.missed_passages == 0
    assert text == expected and report.reused_tokens == first.reused_tokens > 0
    for passage in passages:
        assert await other.encode(context, passage) is EncodeResult.REUSED
    assert shared.files() == files, "a file was written anew"
    # Where one passage is another than was encoded, the answer is: what is compared above has come out of the files.
    spans[2] = {**spans[2], "encode_contexts": [NO_CONTEXT.hash]}
    missing, report = await other.blend(prompt, spans)
    assert report.missed_passages == 1 and missing != text


async def num_files_of(shared: Shared) -> int:
    """Once both tiers hold the same: the second one's files are written behind the first's."""
    async with asyncio.timeout(30):
        while True:
            files = [Path(name) for name in shared.files()]
            names = {tier: {each.name for each in files if each.parts[0] == tier} for tier in ("cpu", "disk")}
            if names["cpu"] == names["disk"]:
                return len(files)
            await asyncio.sleep(0.05)


async def test_both_asked_at_once_encode_once(
    shared: Shared, services: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without claims both encode whatever the other has not stored before it looks."""
    context = EncodeContext(words(64), 20)
    await asyncio.gather(*(service.encode(context, words(8)) for service in services))  # both are ready

    async def requests_for(passages: list[tuple[int, ...]]) -> tuple[int, list[set[EncodeResult]]]:
        before = shared.num_requests()
        encodes = [service.encode(context, own) for own in passages for service in services]
        results = await asyncio.gather(*encodes)
        return shared.num_requests() - before, [{*results[at : at + 2]} for at in range(0, len(results), 2)]

    num_files = await num_files_of(shared)
    num_requests, results = await requests_for([words(400) for _ in range(6)])
    assert num_requests == 6, results
    assert results == [{EncodeResult.STORED, EncodeResult.REUSED}] * 6
    assert await num_files_of(shared) == num_files + 2 * 6

    async def nobody_asks(*_: object, **__: object) -> Callable[[], None]:
        return lambda: None

    monkeypatch.setattr(PassageKV, "claim", nobody_asks)
    num_requests, results = await requests_for([words(400) for _ in range(6)])
    assert num_requests > 6 and {EncodeResult.STORED} in results
