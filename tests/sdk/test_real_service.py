"""Every public method of both clients against the real service."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvblend.core.errors import (
    ConflictError,
    DocumentTooLargeError,
    InvalidRequestError,
    NotFoundError,
    PromptTooLongError,
    UnsupportedDocumentError,
)
from kvblend.core.rest import BlendOptions, IngestJob, QueryDelta, QueryResponse, SearchResponse, Source
from kvblend.sdk import AsyncClient, Client
from tests.sdk.settled import until_settled
from tests.service import RunningService

BRIDGE = "The Halden bridge was opened in 1931. It was built by the engineer Ada Lindqvist.\n"
RIVER = "# River\n\nThe river Orm is 140 kilometres long and rises in the hills of Tarn.\n"
BUILDER = "Who built the Halden bridge?"
MESSAGES = [{"role": "user", "content": BUILDER}]
OVER_WIKI = BlendOptions(collection="sdk-wiki")
BRIEF = {"max_tokens": 16, "temperature": 0}


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@pytest.fixture(scope="module")
def wiki(client: Client) -> str:
    """A collection of two documents, with their KV."""
    assert client.create_collection("sdk-wiki", passage_tokens=64).passage_tokens == 64
    bridge = client.add_document("sdk-wiki", BRIDGE, id="bridge", metadata={"year": 1931, "open": True})
    river = client.add_document("sdk-wiki", RIVER, name="river.md", media_type="text/markdown")
    for job in (bridge, river):
        done = client.wait(job, timeout_s=120)
        assert (done.status, done.passages_encoded) == ("succeeded", done.passages_total)
    return "sdk-wiki"


def test_a_collection_shows_its_documents(client: Client, wiki: str) -> None:
    collection = client.get_collection(wiki)
    assert (collection.num_documents, collection.num_passages) == (2, 2)
    assert collection in client.list_collections()
    bridge, river = client.list_documents(wiki)
    assert (bridge.id, bridge.metadata) == ("bridge", {"year": 1931, "open": True})
    assert (river.id, river.name, river.media_type) == ("river.md", "river.md", "text/markdown")
    assert client.get_document(wiki, "bridge") == bridge


def test_files_are_uploaded_with_progress(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The lamp of Vik burns seal oil.\n" + " " * 200_000)
    (tmp_path / "b.html").write_text("<h1>Ovens</h1><p>The oven of Vik is fired with birch.</p>")
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    sent: list[tuple[int, int]] = []
    states: list[IngestJob] = []
    client.create_collection("sdk-files")
    job = client.upload(
        "sdk-files", [tmp_path / "a.txt", tmp_path / "b.html"], progress=lambda *counts: sent.append(counts)
    )
    done = client.wait(job, progress=states.append, timeout_s=120)
    assert sent == sorted(sent) and sent[0][0] < size and sent[-1] == (size, size)
    assert states[-1] == done == client.get_job("sdk-files", job.id)
    assert done.document_ids == ["a.txt", "b.html"]
    named = client.wait(client.upload("sdk-files", {"ovens/b.html": tmp_path / "b.html"}), timeout_s=120)
    assert (named.document_ids, named.passages_reused) == (["ovens/b.html"], 1)
    client.delete_document("sdk-files", "ovens/b.html")
    client.delete_document("sdk-files", "a.txt")
    assert [document.id for document in client.list_documents("sdk-files")] == ["b.html"]
    client.delete_collection("sdk-files")
    assert "sdk-files" not in [collection.name for collection in client.list_collections()]


def test_a_query_is_answered_whole_and_streamed(client: Client, wiki: str) -> None:
    """Reference: query. Ours: stream_query. Both find the same in vLLM's cache: the same numbers, whatever they say."""
    report = client.query(
        wiki, BUILDER, top_k=2, recompute_ratio=0.25, selector="probe", max_tokens=2, report_tokens=True
    ).report
    assert (report.outcome, report.recompute_ratio, report.missed_passages) == ("blended", 0.25, 0)
    assert report.tokens is not None and sum(count for _, count in report.tokens.fates) == report.context_tokens
    assert sum(n for fate, n in report.tokens.fates if fate in ("recomputed", "fresh")) == report.recomputed_tokens
    asked: dict[str, Any] = {"top_k": 2, "recompute_ratio": 0.25, "selector": "probe", "max_tokens": 16}
    until_settled(lambda: client.query(wiki, BUILDER, **asked).report.model_dump(mode="json"))
    whole = client.query(wiki, BUILDER, **asked)
    first, *deltas, last = client.stream_query(wiki, BUILDER, **asked)
    assert isinstance(first, SearchResponse) and first.sources == whole.sources
    assert _unplaced(whole.sources) == client.search(wiki, BUILDER, top_k=2)
    assert len(deltas) > 1 and "".join(delta.text for delta in deltas if isinstance(delta, QueryDelta)) == whole.answer
    assert isinstance(last, QueryResponse) and (last.answer, last.usage) == (whole.answer, whole.usage)
    plain = client.query(wiki, BUILDER, top_k=2, reuse="none", max_tokens=2)
    assert (plain.report.outcome, plain.report.reused_tokens) == ("prefilled", 0)


def test_a_chat_is_answered_whole_and_streamed(client: Client, wiki: str) -> None:
    """Reference: chat. Ours: stream_chat. Both find the same in vLLM's cache."""
    (model,) = client.list_models()

    def report() -> dict[str, Any]:
        answer = client.chat(MESSAGES, model=model, blend=OVER_WIKI, extra=BRIEF)
        assert answer.kvblend is not None
        return answer.kvblend.report.model_dump(mode="json")

    until_settled(report)
    whole = client.chat(MESSAGES, model=model, blend=OVER_WIKI, extra=BRIEF)
    assert whole.model == model and whole.kvblend is not None and whole.usage is not None
    assert whole.kvblend.report.outcome in ("blended", "prefix_hit")
    assert whole.kvblend.sources[0].document_id == "bridge"
    chunks = list(client.stream_chat(MESSAGES, blend=OVER_WIKI, extra=BRIEF))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.usage for chunk in chunks if chunk.usage] == [whole.usage]
    reports = [chunk.kvblend for chunk in chunks if chunk.kvblend]
    assert len(reports) == 1 and reports[0].sources == whole.kvblend.sources
    alone = client.chat(MESSAGES, extra=BRIEF)
    assert alone.kvblend is not None and alone.kvblend.report.outcome == "prefilled"


def test_the_tiers_hold_what_was_encoded(client: Client, wiki: str) -> None:
    cpu, disk = client.kv_stats().tiers
    assert (cpu.name, disk.name) == ("cpu", "disk")
    assert 0 < cpu.used_bytes <= cpu.budget_bytes and cpu.num_files > 0


@pytest.mark.parametrize("document_id", ["a/b", "a b?c#d%2F", "ü/…", "...", "x/"])
def test_a_document_id_may_hold_nearly_anything(client: Client, wiki: str, document_id: str) -> None:
    client.wait(client.add_document(wiki, BRIDGE, id=document_id), timeout_s=120)
    assert client.get_document(wiki, document_id).id == document_id
    client.delete_document(wiki, document_id)
    with pytest.raises(NotFoundError):
        client.get_document(wiki, document_id)
    assert client.get_collection(wiki).num_documents == 2


@pytest.mark.parametrize("document_id", ["", ".", "..", "../..", "../../sdk-wiki"])
def test_an_id_that_is_a_path_reaches_nothing_else(client: Client, wiki: str, document_id: str) -> None:
    with pytest.raises((NotFoundError, InvalidRequestError)):
        client.delete_document(wiki, document_id)
    with pytest.raises(InvalidRequestError):
        client.add_document(wiki, BRIDGE, id=document_id)
    assert client.get_collection(wiki).num_documents == 2


def test_errors_are_those_of_core(client: Client, wiki: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        client.query("nowhere", "?")
    with pytest.raises(NotFoundError):
        client.get_job(wiki, uuid.uuid4().hex)
    with pytest.raises(ConflictError, match=wiki) as conflict:
        client.create_collection(wiki)
    assert conflict.value.param == "name"
    with pytest.raises(InvalidRequestError, match="recompute_ratio"):
        client.query(wiki, "?", recompute_ratio=2)
    with pytest.raises(PromptTooLongError, match="more than the model's"):
        client.chat(MESSAGES, blend=OVER_WIKI, extra={"max_tokens": 100_000})
    with pytest.raises(PromptTooLongError, match="more than the model's"):
        list(client.stream_query(wiki, "?", max_tokens=8192))
    for name, size, error in (
        ("empty.txt", 0, InvalidRequestError),
        ("picture.xyz", 1, UnsupportedDocumentError),
        ("large.txt", (32 << 20) + 1, DocumentTooLargeError),
    ):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        with pytest.raises(error) as raised:
            client.upload(wiki, [tmp_path / name])
        assert type(raised.value) is error
    with pytest.raises(FileNotFoundError):
        client.upload(wiki, [tmp_path / "absent.txt"])
    assert client.get_collection(wiki).num_documents == 2


async def test_the_asynchronous_client_does_all_of_it(service: RunningService, tmp_path: Path) -> None:
    (tmp_path / "river.md").write_text(RIVER)
    sent: list[int] = []
    states: list[IngestJob] = []
    async with AsyncClient(service.url) as client:
        created = await client.create_collection("sdk-async")
        assert await client.get_collection("sdk-async") == created in await client.list_collections()
        job = await client.upload("sdk-async", [tmp_path / "river.md"], progress=lambda now, _: sent.append(now))
        assert sent[-1] == len(RIVER)
        done = await client.wait(job, progress=states.append, timeout_s=120)
        assert states[-1] == done == await client.get_job("sdk-async", job.id)
        await client.wait(await client.add_document("sdk-async", BRIDGE, id="dir/bridge"), timeout_s=120)
        documents = [document async for document in client.list_documents("sdk-async")]
        assert [document.id for document in documents] == ["dir/bridge", "river.md"]
        assert await client.get_document("sdk-async", "dir/bridge") == documents[0]

        first = await client.query("sdk-async", BUILDER, top_k=2, max_tokens=2)
        assert first.report.outcome == "blended"
        whole = await client.query("sdk-async", BUILDER, top_k=2, max_tokens=16)
        events = [event async for event in client.stream_query("sdk-async", BUILDER, top_k=2, max_tokens=16)]
        assert isinstance(events[-1], QueryResponse) and events[-1].answer == whole.answer
        assert await client.search("sdk-async", BUILDER, top_k=2) == _unplaced(whole.sources)

        (model,) = await client.list_models()
        blend = BlendOptions(collection="sdk-async")
        await client.chat(MESSAGES, model=model, blend=blend, extra=BRIEF)
        chat = await client.chat(MESSAGES, model=model, blend=blend, extra=BRIEF)
        chunks = [chunk async for chunk in client.stream_chat(MESSAGES, model=model, blend=blend, extra=BRIEF)]
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert text == chat.choices[0].message.content
        assert chunks[-1].kvblend is not None and chunks[-1].kvblend.report.outcome in ("blended", "prefix_hit")
        assert [tier.name for tier in (await client.kv_stats()).tiers] == ["cpu", "disk"]

        for call in (client.get_document("sdk-async", "nothing"), client.delete_collection("nowhere")):
            with pytest.raises(NotFoundError):
                await call
        with pytest.raises(ConflictError):
            await client.create_collection("sdk-async")
        with pytest.raises(NotFoundError, match="ghost"):
            await client.chat(MESSAGES, model="ghost", blend=blend)
        await client.delete_document("sdk-async", "dir/bridge")
        assert [document.id async for document in client.list_documents("sdk-async")] == ["river.md"]
        await client.delete_collection("sdk-async")
        with pytest.raises(NotFoundError):
            await client.get_collection("sdk-async")


def _unplaced(sources: list[Source]) -> list[Source]:
    """As a search without a prompt has them."""
    assert [source.place for source in sources] == list(range(len(sources)))
    return [source.model_copy(update={"place": None}) for source in sources]
