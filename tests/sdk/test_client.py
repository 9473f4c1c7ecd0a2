"""Both clients against a small service over HTTP."""

import inspect
import socket
from pathlib import Path

import pytest

from kvblend.core.errors import (
    ConflictError,
    EngineUnavailableError,
    InvalidRequestError,
    KVBlendError,
    NotFoundError,
    PromptTooLongError,
)
from kvblend.core.rest import BlendOptions, QueryDelta, QueryResponse, SearchResponse
from kvblend.sdk import AsyncClient, Client


def test_a_collection_lives_and_dies(url: str) -> None:
    with Client(url) as client:
        assert client.create_collection("wiki", preamble="Answer.").name == "wiki"
        job = client.wait(client.add_document("wiki", "bees make honey", name="bees", metadata={"year": 3}))
        assert job.document_ids == ["bees"]
        assert client.get_document("wiki", "bees").metadata == {"year": 3}
        assert [found.name for found in client.list_collections()] == ["wiki"]
        assert client.get_collection("wiki").num_documents == 1
        client.delete_document("wiki", "bees")
        assert client.get_collection("wiki").num_documents == 0
        client.delete_collection("wiki")
        assert client.list_collections() == []
        assert client.list_models() == ["small"]
        assert [tier.name for tier in client.kv_stats().tiers] == ["cpu"]


def test_documents_are_listed_over_all_pages(url: str) -> None:
    with Client(url) as client:
        client.create_collection("wiki")
        for i in range(5):
            client.add_document("wiki", f"text {i}", id=f"d{i}")
        assert [document.id for document in client.list_documents("wiki")] == ["d0", "d1", "d2", "d3", "d4"]


@pytest.mark.parametrize("document_id", ["a/b", "..", "../x", "a b?c#d%2F", "ü/…"])
def test_a_document_id_may_hold_anything(url: str, document_id: str) -> None:
    with Client(url) as client:
        client.create_collection("wiki")
        client.add_document("wiki", "text", id=document_id)
        assert client.get_document("wiki", document_id).id == document_id
        client.delete_document("wiki", document_id)
        assert client.get_collection("wiki").num_documents == 0


def test_an_empty_id_does_not_reach_the_parent(url: str) -> None:
    with Client(url) as client:
        client.create_collection("wiki")
        with pytest.raises(InvalidRequestError, match="empty"):
            client.delete_document("wiki", "")
        assert client.get_collection("wiki").name == "wiki"


def test_files_are_uploaded_with_progress(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 200_000)
    (tmp_path / "b.md").write_text("# b\n")
    seen: list[tuple[int, int]] = []
    with Client(url) as client:
        client.create_collection("wiki")
        job = client.upload(
            "wiki", [tmp_path / "a.txt", tmp_path / "b.md"], progress=lambda sent, total: seen.append((sent, total))
        )
        statuses: list[str] = []
        client.wait(job, progress=lambda job: statuses.append(job.status))
    assert job.document_ids == ["a.txt", "b.md"]
    assert seen == sorted(seen) and seen[0][0] < 200_004 and seen[-1] == (200_004, 200_004)
    assert statuses == ["running", "succeeded"]


def test_a_failed_job_is_an_error_and_a_slow_one_times_out(url: str) -> None:
    with Client(url) as client:
        client.create_collection("wiki")
        slow = client.add_document("wiki", "fine")
        with pytest.raises(TimeoutError):
            client.wait(slow, timeout_s=0.0)
        with pytest.raises(KVBlendError, match="poison"):
            client.wait(client.add_document("wiki", "poison"))


def test_a_query_is_answered_whole_and_streamed(url: str) -> None:
    question = "who makes\u2028honey \u0085 ?"  # line ends to str.splitlines, not to SSE
    with Client(url) as client:
        client.create_collection("wiki")
        client.add_document("wiki", "bees make honey", id="bees")
        client.add_document("wiki", "cows give milk", id="cows")
        whole = client.query("wiki", question, top_k=1, recompute_ratio=0.25)
        assert whole.answer == f"You asked: {question}"
        assert whole.report.recompute_ratio == 0.25
        assert client.search("wiki", "honey", top_k=1)[0].document_id == "bees"
        first, *deltas, last = client.stream_query("wiki", question, top_k=1, recompute_ratio=0.25)
    assert isinstance(first, SearchResponse) and first.sources == whole.sources
    assert "".join(delta.text for delta in deltas if isinstance(delta, QueryDelta)).strip() == whole.answer
    assert isinstance(last, QueryResponse) and last == whole


@pytest.mark.parametrize(("question", "message"), [("break", "broke off"), ("hang up", "not answer"), ("fail", "died")])
def test_a_broken_stream_is_an_error(url: str, question: str, message: str) -> None:
    with Client(url) as client:
        client.create_collection("wiki")
        deltas = []
        with pytest.raises(EngineUnavailableError, match=message):
            for event in client.stream_query("wiki", question):
                deltas.append(event)
        assert len(deltas) >= 3


def test_errors_are_those_of_core(url: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with Client(url) as client:
        with pytest.raises(NotFoundError, match="nowhere"):
            client.query("nowhere", "?")
        client.create_collection("wiki")
        with pytest.raises(ConflictError) as conflict:
            client.create_collection("wiki")
        assert conflict.value.param == "name"
        with pytest.raises(InvalidRequestError, match="recompute_ratio"):
            client.query("wiki", "?", recompute_ratio=2)
        with pytest.raises(InvalidRequestError, match="name"):
            client.create_collection("../etc")
        with pytest.raises(InvalidRequestError, match="empty"):
            client.upload("wiki", [tmp_path / "empty.txt"])
        with pytest.raises(EngineUnavailableError):
            client.query("wiki", "engine down")
        with pytest.raises(PromptTooLongError, match="7 tokens"):
            client.chat([{"role": "user", "content": "?"}], blend=BlendOptions(documents=["a"] * 4))
        with pytest.raises(FileNotFoundError):
            client.upload("wiki", [tmp_path / "absent.txt"])


def test_a_service_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(EngineUnavailableError, match=str(port)):
        client.kv_stats()


async def test_the_asynchronous_client_does_all_of_it(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("bees make honey")
    sent: list[int] = []
    async with AsyncClient(url) as client:
        await client.create_collection("wiki")
        job = await client.upload("wiki", [tmp_path / "a.txt"], progress=lambda now, _: sent.append(now))
        assert (await client.wait(job)).status == "succeeded"
        await client.add_document("wiki", "cows", id="c")
        assert [document.id async for document in client.list_documents("wiki")] == ["a.txt", "c"]
        whole = await client.query("wiki", "honey")
        events = [event async for event in client.stream_query("wiki", "honey")]
        assert events[-1] == whole
        with pytest.raises(EngineUnavailableError, match="died"):
            async for _ in client.stream_query("wiki", "fail"):
                pass
        with pytest.raises(NotFoundError):
            await client.get_document("wiki", "d")
        await client.delete_document("wiki", "c")
        assert len(await client.search("wiki", "honey")) == 1
        await client.delete_collection("wiki")
        assert await client.list_collections() == []
    assert sent[-1] == len("bees make honey")


def test_both_clients_have_the_same_methods() -> None:
    """Reference: the signatures of Client. Ours: those of AsyncClient."""
    public = [name for name in dir(Client) if not name.startswith("_")]
    assert public == [name for name in dir(AsyncClient) if not name.startswith("_")]
    for name in public:
        ours, reference = inspect.signature(getattr(AsyncClient, name)), inspect.signature(getattr(Client, name))
        assert ours.parameters == reference.parameters, name
