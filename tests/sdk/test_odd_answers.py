"""Both clients and answers that a service in good order does not give."""

import inspect
import socket
from typing import Any

import pytest

from kvblend.core.errors import (
    ConflictError,
    DocumentTooLargeError,
    EngineUnavailableError,
    InvalidRequestError,
    KVBlendError,
    NotFoundError,
    UnauthorizedError,
    UnsupportedDocumentError,
)
from kvblend.core.rest import IngestJob, QueryDelta
from kvblend.sdk import AsyncClient, Client
from tests.sdk.odd_service import DOCUMENT_IDS

BROKEN = [("break", "broke off"), ("hang up", "not answer"), ("fail", "died")]
USER: list[dict[str, Any]] = [{"role": "user", "content": "?"}]


@pytest.mark.parametrize(("question", "message"), BROKEN)
async def test_a_broken_stream_is_an_error(odd_url: str, question: str, message: str) -> None:
    events = []
    with Client(odd_url) as client, pytest.raises(EngineUnavailableError, match=message):
        for event in client.stream_query("any", question):
            events.append(event)
    text = "".join(event.text for event in events if isinstance(event, QueryDelta))
    assert text == "line\u2028ends of\u0085str are not SSE's"
    same = []
    async with AsyncClient(odd_url) as asynchronous:
        with pytest.raises(EngineUnavailableError, match=message):
            async for event in asynchronous.stream_query("any", question):
                same.append(event)
    assert same == events


async def test_a_broken_chat_is_an_error(odd_url: str) -> None:
    with Client(odd_url) as client:
        with pytest.raises(EngineUnavailableError, match="died"):
            list(client.stream_chat(USER))
        with pytest.raises(EngineUnavailableError, match="broke off"):
            list(client.stream_chat([{"role": "user", "content": "break"}]))
    async with AsyncClient(odd_url) as asynchronous:
        with pytest.raises(EngineUnavailableError, match="died"):
            [chunk async for chunk in asynchronous.stream_chat(USER)]


def test_an_event_that_is_not_known_is_an_error(odd_url: str) -> None:
    with Client(odd_url) as client, pytest.raises(KVBlendError, match="novelty"):
        list(client.stream_query("any", "novelty"))


async def test_documents_are_listed_over_all_pages(odd_url: str) -> None:
    with Client(odd_url) as client:
        assert [document.id for document in client.list_documents("any")] == DOCUMENT_IDS
    async with AsyncClient(odd_url) as asynchronous:
        assert [document.id async for document in asynchronous.list_documents("any")] == DOCUMENT_IDS


async def test_a_failed_job_is_an_error_and_a_slow_one_times_out(odd_url: str) -> None:
    poison, slow = (IngestJob(id=id, collection="any", status="queued") for id in ("poison", "slow"))
    with Client(odd_url) as client:
        with pytest.raises(KVBlendError, match="poison"):
            client.wait(poison)
        with pytest.raises(TimeoutError):
            client.wait(slow, timeout_s=0.1)
    async with AsyncClient(odd_url) as asynchronous:
        with pytest.raises(KVBlendError, match="poison"):
            await asynchronous.wait(poison)
        with pytest.raises(TimeoutError):
            await asynchronous.wait(slow, timeout_s=0.1)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, UnauthorizedError),
        (404, NotFoundError),
        (409, ConflictError),
        (413, DocumentTooLargeError),
        (415, UnsupportedDocumentError),
        (418, InvalidRequestError),
        (500, KVBlendError),
        (502, EngineUnavailableError),
        (503, EngineUnavailableError),
    ],
)
def test_a_proxy_is_quoted(odd_url: str, status: int, error: type[KVBlendError]) -> None:
    with Client(odd_url) as client, pytest.raises(KVBlendError, match=f"{status}.*proxy's own words") as raised:
        client.get_collection(str(status))
    assert type(raised.value) is error


def test_a_service_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(EngineUnavailableError, match=str(port)):
        client.kv_stats()


def test_both_clients_have_the_same_methods() -> None:
    """Reference: the signatures of Client. Ours: those of AsyncClient."""
    public = [name for name in dir(Client) if not name.startswith("_")]
    assert public == [name for name in dir(AsyncClient) if not name.startswith("_")]
    for name in public:
        ours, reference = inspect.signature(getattr(AsyncClient, name)), inspect.signature(getattr(Client, name))
        assert ours.parameters == reference.parameters, name
