"""Requests that somebody waits for have threads of their own."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path

import pytest

from kvblend.api.engine.answer_route import COMPLETIONS
from kvblend.api.query_threads import QueryThreads
from kvblend.api.running_service import running_service
from kvblend.api.service import Service, ServiceConfig
from kvblend.cli.engine import free_port
from kvblend.core.rest import BlendOptions, CollectionCreate, RetrievalChoices
from kvblend.core.settings import Settings

TEXT = "The bridge of Vik is closed in winter, and straw covers it until the ferry runs again in May. " * 3


@asynccontextmanager
async def blocked_pool() -> AsyncIterator[None]:
    """Nothing has its turn in asyncio's own pool, as where every thread of it waits for a remote tier."""
    end = threading.Event()
    waiting = [asyncio.create_task(asyncio.to_thread(end.wait)) for _ in range(64)]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        end.set()
        await asyncio.gather(*waiting)


@pytest.fixture
async def service(demo_model_path: Path, embedding_model_path: Path, tmp_path: Path) -> AsyncIterator[Service]:
    """One without a vLLM, and with a document."""
    config = ServiceConfig(
        model=str(demo_model_path),
        embedding_model=embedding_model_path,
        engines=[(f"http://127.0.0.1:{free_port()}", f"ipc://{tmp_path}/control.sock")],
        settings=Settings(home=tmp_path / "home", cpu_bytes=0, disk_bytes=1 << 30),
    )
    async with running_service(config) as service:
        service.collections.create(CollectionCreate(name="c", passage_tokens=64), max_model_len=None)
        service.retriever.commit_document(service.retriever.plan_ingest("c", TEXT, document_id="vik"))
        yield service


async def test_nothing_in_asyncios_own_pool_holds_up_a_search(service: Service) -> None:
    prompt = {"prompt": f"{TEXT}\n\nWhen is it closed?"}
    while await service.drop_in.match(COMPLETIONS, prompt) is None:  # noqa: ASYNC110 (its index is made meanwhile)
        await asyncio.sleep(0.05)
    async with blocked_pool(), asyncio.timeout(120):
        found = await service.retrieval.search("c", "When is the bridge closed?", RetrievalChoices())
        assert found.sources[0].document_id == "vik"
        supplied = await service.retrieval.context(BlendOptions(documents=["The ferry runs."]), query="?")
        assert [source.text for source in supplied.sources] == ["The ferry runs."]
        assert await service.drop_in.match(COMPLETIONS, prompt) is not None


async def test_the_pool_is_blocked() -> None:
    """The negative control."""
    async with blocked_pool():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.to_thread(int)


async def test_a_call_has_its_callers_context() -> None:
    """As asyncio.to_thread's does: spans of a trace stand in it."""
    threads, told = QueryThreads(), ContextVar[str]("told")
    told.set("here")
    assert await threads.run(told.get) == "here"
    threads.close()
