"""Bad input gets a clear 4xx in OpenAI's shape and changes nothing; none of it needs vLLM."""

import json
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvblend.core.rest import ErrorResponse
from kvblend.core.settings import Settings

MIB = 1 << 20


@pytest.fixture
def client(lone_url: str) -> Iterator[httpx.Client]:
    """A client with the API key, and a collection `taken` to talk to."""
    with httpx.Client(base_url=lone_url, headers={"Authorization": "Bearer secret"}, timeout=60) as client:
        client.post("/v1/collections", json={"name": "taken"})
        yield client


@pytest.fixture(autouse=True)
def _nothing_changes(client: httpx.Client, lone_settings: Settings) -> Iterator[None]:
    """After each test the service holds what it held before."""
    before = state_of(client, lone_settings.home_path)
    yield
    assert state_of(client, lone_settings.home_path) == before


def state_of(client: httpx.Client, home: Path) -> Any:
    collections = client.get("/v1/collections").json()["collections"]
    documents = [client.get(f"/v1/collections/{each['name']}/documents").json() for each in collections]
    files = {path.relative_to(home) for path in home.rglob("*") if "-wal" not in path.name and "-shm" not in path.name}
    return collections, documents, files


def error_of(response: httpx.Response, status: int) -> str:
    """The message of an error of this status, which is OpenAI-shaped."""
    assert response.status_code == status, response.text
    error = ErrorResponse.model_validate(response.json()).error
    assert error.type == ("invalid_request_error" if status < 500 else "server_error")
    return error.message


QUERY = "/v1/collections/taken/query"
DOCUMENTS = "/v1/collections/taken/documents"


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/collections/none/query", {"question": "?"}, 404, "no collection 'none'"),
        ("/v1/collections/none/search", {"query": "?"}, 404, "no collection 'none'"),
        ("/v1/collections/none/documents", {"text": "x"}, 404, "no collection 'none'"),
        (QUERY, {"question": "?", "recompute_ratio": 2}, 400, "recompute_ratio: .*less than or equal to 1.*given: 2"),
        (QUERY, {"question": "?", "recompute_ratio": -0.1}, 400, "recompute_ratio: .*greater than or equal to 0"),
        (QUERY, {"question": "?", "recompute_ratio": "much"}, 400, "recompute_ratio: .*number"),
        (QUERY, {"question": "?", "target_kl": 0}, 400, "target_kl: .*greater than 0.*given: 0"),
        (QUERY, {"question": "?", "recompute_ratio": 0.1, "target_kl": 0.1}, 400, "one of recompute_ratio and target"),
        (QUERY, {"question": ""}, 400, "question: .*at least 1 character"),
        (QUERY, {"question": ["?"]}, 400, "question: .*string"),
        (QUERY, {}, 400, "question: Field required"),
        (QUERY, {"question": "?", "selector": "best"}, 400, "selector"),
        (QUERY, {"question": "?", "top_k": 0}, 400, "top_k"),
        (QUERY, {"question": "?", "topk": 3}, 400, "topk: Extra inputs are not permitted"),
        ("/v1/collections", {"name": "../up"}, 400, "name: .*pattern"),
        ("/v1/collections", {"name": "taken"}, 409, "already a collection 'taken'"),
        ("/v1/collections", {"name": "wide", "passage_tokens": 1 << 20}, 400, "passage_tokens"),
        (DOCUMENTS, {"text": ""}, 400, "text: .*at least 1 character"),
        (DOCUMENTS, {"text": " \n "}, 400, "no text"),
        (DOCUMENTS, {"text": 5}, 400, "text: .*string"),
        (DOCUMENTS, {"text": "x", "name": "../../etc/passwd"}, 400, r"name .*'\.\.' step"),
        (DOCUMENTS, {"text": "x", "id": "a/../b"}, 400, r"id .*'\.\.' step"),
        (DOCUMENTS, {"text": "x", "id": "./b"}, 400, r"id .*'\.' step"),
        (DOCUMENTS, {"text": "x", "id": "a\u0000b"}, 400, "control character"),
        (DOCUMENTS, {"text": "x", "media_type": "image/png"}, 400, "media_type"),
        ("/v1/chat/completions", {"messages": [], "kvblend": {"documents": ["x"]}}, 400, "messages"),
        ("/v1/chat/completions", {"kvblend": {"documents": ["x"]}}, 400, "messages: Field required"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "?"}], "kvblend": {"documents": [""]}},
            400,
            "documents",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "?"}], "kvblend": {"collection": "none"}},
            404,
            "no collection 'none'",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "assistant", "content": "?"}], "kvblend": {"documents": ["x"]}},
            400,
            "must be the user's",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": 5}], "kvblend": {"documents": ["x"]}},
            400,
            "must be text",
        ),
        ("/v1/completions", {"prompt": {"a": 1}, "kvblend": {}}, 400, "prompt"),
        ("/v1/completions", {"prompt": ["a", "b"], "kvblend": {"documents": ["x"]}}, 400, "one text or one list"),
        ("/v1/kv/stats", {}, 405, "does not take POST"),
        ("/v1/nothing", {}, 404, "no such route"),
    ],
)  # fmt: skip
def test_a_bad_body_is_refused(client: httpx.Client, path: str, body: Any, status: int, said: str) -> None:
    message = error_of(client.post(path, json=body), status)
    assert re.search(said, message), message


@pytest.mark.parametrize("path", ["/v1/collections", QUERY, DOCUMENTS, "/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("body", [b'{"question": ', b"\xff\xfe", b"[1]", b"", b'"text"'])
def test_a_malformed_body_is_refused(client: httpx.Client, path: str, body: bytes) -> None:
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert error_of(response, 400)


@pytest.mark.parametrize(
    ("name", "data", "status", "said"),
    [
        ("picture.png", b"\x89PNG", 415, "picture.png"),
        ("empty.txt", b"", 400, "empty.txt"),
        ("../up.txt", b"text", 400, r"'\.\.' step"),
        ("a/./up.txt", b"text", 400, r"'\.' step"),
        ("large.txt", b"word " * (MIB // 4), 413, "at most 1048576"),
    ],
)
def test_a_bad_file_is_refused_and_its_good_neighbour_too(
    client: httpx.Client, name: str, data: bytes, status: int, said: str
) -> None:
    files = [("files", ("good.txt", b"A good document.")), ("files", (name, data))]
    assert re.search(said, error_of(client.post(DOCUMENTS, files=files), status))


def test_a_multipart_body_without_files_is_refused(client: httpx.Client) -> None:
    assert "files" in error_of(client.post(DOCUMENTS, files=[("other", ("a.txt", b"text"))]), 400)


def test_two_files_of_one_name_are_refused(client: httpx.Client) -> None:
    files = [("files", ("a.txt", b"one")), ("files", ("a.txt", b"two"))]
    assert "'a.txt'" in error_of(client.post(DOCUMENTS, files=files), 400)


def test_another_type_of_body_is_refused(client: httpx.Client) -> None:
    assert "text/csv" in error_of(client.post(DOCUMENTS, content=b"a,b", headers={"Content-Type": "text/csv"}), 415)


def test_a_long_body_is_refused_by_its_declared_length(client: httpx.Client) -> None:
    text = json.dumps({"text": "word " * 10 * MIB}).encode()
    assert "larger than" in error_of(
        client.post(DOCUMENTS, content=text, headers={"Content-Type": "application/json"}), 413
    )


@pytest.mark.parametrize("path", [DOCUMENTS, QUERY])
def test_a_body_of_no_declared_length_is_refused_and_never_held(client: httpx.Client, path: str) -> None:
    def long_body() -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(200):
            yield b"x" * MIB

    most_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of this process: the service is a thread of it
    response = client.post(path, content=long_body(), headers={"Content-Type": "application/json"})
    assert "larger than" in error_of(response, 413)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most_before
    assert grown_kib < 100 << 10


@pytest.mark.parametrize("key", ["Bearer wrong", "Basic secret", ""])
def test_without_the_key_nothing_is_answered(lone_url: str, key: str) -> None:
    response = httpx.get(f"{lone_url}/v1/collections", headers={"Authorization": key})
    assert "API key" in error_of(response, 401)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/collections/none", f"{DOCUMENTS}/none", f"{DOCUMENTS}/..%2F..%2Fetc"])
def test_what_is_not_there_is_not_found(client: httpx.Client, method: str, path: str) -> None:
    error_of(client.request(method, path), 404)


def test_without_vllm_an_answer_is_a_503_that_says_when_to_come_back(client: httpx.Client) -> None:
    for path, body in (
        (QUERY, {"question": "?"}),
        (QUERY, {"question": "?", "stream": True}),
        ("/v1/completions", {"prompt": "?"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}], "stream": True}),
    ):
        response = client.post(path, json=body)
        assert "does not answer" in error_of(response, 503)
        assert int(response.headers["Retry-After"]) > 0
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
