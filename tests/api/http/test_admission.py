"""As many answers, lookups, uploads, jobs and requests as may be, and no more: 429 says when to come back."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from select import select

import httpx
import pytest

from kvblend.api.access.admission import MAX_UPLOADS
from tests.api.access.served_keys import client_of, key_of, write_keys
from tests.api.scripted_service import ScriptedService, scripted_service

CHAT: dict[str, object] = {"messages": [{"role": "user", "content": "?"}]}
ANSWERS: tuple[tuple[str, dict[str, object]], ...] = (
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", {"prompt": "?"}),
    ("/v1/collections/docs/query", {"question": "?"}),
)


@pytest.fixture(scope="module")
def scripted(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    folder = tmp_path_factory.mktemp("admission")
    keys = write_keys(folder / "keys.yaml", "{beta: {requests_per_minute: 3}}")
    options = {"keys": keys, "max_requests": 1, "max_jobs": 1}
    with scripted_service(
        folder,
        model=demo_model_path,
        embedding_model=embedding_model_path,
        **options,  # type: ignore[arg-type]
    ) as service:
        yield service


def assert_refused(response: httpx.Response, code: str) -> None:
    """429, with a code that names the bound and a time to come back."""
    assert response.status_code == 429, response.text
    assert response.json()["error"]["code"] == code
    assert int(response.headers["retry-after"]) >= 1


def test_a_streamed_answer_holds_its_place_until_its_end(scripted: ScriptedService) -> None:
    with client_of(scripted.url, "ops") as client, client_of(scripted.url, "acme-ingest") as other:
        client.post("/v1/collections", json={"name": "docs"}).raise_for_status()
        scripted.engine.token_s = 0.2
        long: dict[str, object] = {**CHAT, "stream": True, "max_tokens": 100}
        with client.stream("POST", "/v1/chat/completions", json=long) as answer:
            events = answer.iter_lines()
            assert answer.status_code == 200 and next(events)
            for path, body in ANSWERS:
                assert_refused(other.post(path, json=body), "too_many_requests")
            assert other.get("/v1/collections").status_code == 200  # nothing that vLLM answers
        scripted.engine.token_s = 0.0
        for path, body in (*ANSWERS, ("/v1/completions", {"prompt": "?", "stream": True})):
            assert _once_free(client, path, body).status_code == 200, path
        assert _once_free(client, "/v1/completions", {"prompt": "?", "priority": "high"}).status_code == 400
        assert _once_free(client, *ANSWERS[1]).status_code == 200  # what is refused has given its place back


LOOKUPS: tuple[tuple[str, dict[str, object]], ...] = (
    ("/detokenize", {"tokens": [5]}),
    ("/v1/chat/completions/render", CHAT),
    ("/v1/collections/docs/search", {"query": "?"}),
)


@pytest.mark.parametrize("path", [path for path, _ in LOOKUPS])
def test_lookups_have_places_of_their_own(scripted: ScriptedService, path: str) -> None:
    with client_of(scripted.url, "acme-ingest") as client:
        client.post("/v1/collections", json={"name": "docs"})
        with held(client, path):
            for each, body in LOOKUPS:
                assert_refused(client.post(each, json=body), "too_many_requests")
            assert client.get("/v1/collections").status_code == 200
            assert _once_free(client, *ANSWERS[1]).status_code == 200
        for each, body in LOOKUPS:
            assert _once_free(client, each, body).status_code == 200, each


def test_no_more_uploads_are_received_at_a_time_than_may_be(scripted: ScriptedService) -> None:
    documents = "/v1/collections/received/documents"
    with client_of(scripted.url, "acme-ingest") as client:
        client.post("/v1/collections", json={"name": "received"}).raise_for_status()
        with held(client, documents, MAX_UPLOADS):
            assert_refused(client.post(documents, json={}), "too_many_requests")
        assert _once_free(client, documents, {}).status_code == 400


@contextmanager
def held(client: httpx.Client, path: str, num_places: int = 1) -> Iterator[None]:
    """That many requests, whose bodies do not end before the block does, have all the places there are."""
    with ExitStack() as closing:
        begun = [closing.enter_context(_begin(client.base_url, path)) for _ in range(num_places)]
        deadline = time.monotonic() + 120
        while client.post(path, json={}).status_code != 429:  # an empty body costs nothing
            assert time.monotonic() < deadline
            time.sleep(0.05)
            for answered in select(begun, [], [], 0)[0]:  # it came while this client had the place, and was refused
                begun.remove(answered)
                begun.append(closing.enter_context(_begin(client.base_url, path)))
        yield


def _begin(address: httpx.URL, path: str) -> socket.socket:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address.host}\r\nx-api-key: {key_of('acme-ingest')}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )
    connection = socket.create_connection((address.host, address.port or 80))
    connection.sendall(head.encode())
    return connection


def _once_free(client: httpx.Client, path: str, body: object) -> httpx.Response:
    """The answer, once the client's leaving before it has been noticed."""
    deadline = time.monotonic() + 60
    while (response := client.post(path, json=body)).status_code == 429 and time.monotonic() < deadline:
        time.sleep(0.05)
    return response


def test_one_job_more_than_may_be_is_refused(scripted: ScriptedService) -> None:
    with client_of(scripted.url, "acme-ingest") as client:
        client.post("/v1/collections", json={"name": "jobs"}).raise_for_status()
        scripted.engine.hangs = True  # so that its encodes do
        try:
            job = client.post("/v1/collections/jobs/documents", json={"text": "A text. " * 50})
            assert job.status_code == 202
            assert_refused(client.post("/v1/collections/jobs/documents", json={"text": "More."}), "too_many_jobs")
            assert_refused(client.post("/v1/collections/jobs/documents", content=b"{"), "too_many_jobs")
        finally:
            scripted.engine.hangs = False
        assert _once_free(client, "/v1/collections/jobs/documents", {"text": "More."}).status_code == 202


def test_a_tenants_rate_is_its_own(scripted: ScriptedService) -> None:
    with client_of(scripted.url, "beta-admin") as beta, client_of(scripted.url, "acme-query") as acme:
        for _ in range(3):
            assert beta.get("/v1/collections").status_code == 200
        refused = beta.get("/v1/collections")
        assert_refused(refused, "rate_limited")
        assert int(refused.headers["retry-after"]) <= 20
        for _ in range(5):
            assert acme.get("/v1/collections").status_code == 200
