"""What no client should send: refused in words that name the field, and it costs nobody else anything."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from kvblend.core.rest import ErrorResponse

SURROGATE = "\ud800"
QUERY = "/v1/collections/hostile/query"
DOCUMENTS = "/v1/collections/hostile/documents"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "?"}]


@pytest.fixture
def client(lone_url: str) -> Iterator[httpx.Client]:
    """A client with the API key, and a collection `hostile` to talk to."""
    with httpx.Client(base_url=lone_url, headers={"Authorization": "Bearer secret"}, timeout=60) as client:
        client.post("/v1/collections", json={"name": "hostile"})
        yield client
        client.delete("/v1/collections/hostile")


def post(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    """Send a body as Python's json writes it: NaN and lone surrogates as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, content=content, headers={"Content-Type": "application/json"})


def refused(response: httpx.Response, status: int = 400) -> tuple[str, str | None]:
    """Message and param of a refusal."""
    assert response.status_code == status, response.text
    error = ErrorResponse.model_validate(response.json()).error
    return error.message, error.param


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (DOCUMENTS, {"text": "x", "metadata": {"x": SURROGATE}}, "metadata.x"),
        (DOCUMENTS, {"text": "x", "metadata": {SURROGATE: 1}}, "metadata"),
        (DOCUMENTS, {"text": "x" + SURROGATE}, "text"),
        (DOCUMENTS, {"text": "x", "id": SURROGATE}, "id"),
        (DOCUMENTS, {"text": "x", "name": SURROGATE}, "name"),
        (DOCUMENTS, {"text": "x", "metadata": {"x": float("nan")}}, "metadata.x"),
        ("/v1/collections", {"name": "bad", "preamble": SURROGATE}, "preamble"),
        ("/v1/collections", {"name": "bad", "warm_context": "a" + SURROGATE}, "warm_context"),
        (QUERY, {"question": SURROGATE}, "question"),
        (QUERY, {"question": "?", "temperature": float("nan")}, "temperature"),
        (CHAT, {"messages": MESSAGES, "temperature": float("nan")}, "temperature"),
        (CHAT, {"messages": MESSAGES, "temperature": float("-inf")}, "temperature"),
        (CHAT, b'{"messages": [{"role": "user", "content": "?"}], "temperature": 1e400}', "temperature"),
        (CHAT, {"messages": MESSAGES, "n": float("nan")}, "n"),
        (CHAT, {"messages": MESSAGES, "stop": ["a", SURROGATE]}, "stop.1"),
        (CHAT, {"messages": MESSAGES, "seed": float("inf")}, "seed"),
        (CHAT, {"messages": MESSAGES, "seed": 1 << 65}, "seed"),
        (CHAT, {"messages": MESSAGES, "logit_bias": {"5": float("nan")}}, "logit_bias.5"),
        (CHAT, {"messages": MESSAGES, "logit_bias": {SURROGATE: 1}}, "logit_bias"),
        (CHAT, {"messages": MESSAGES, "model": SURROGATE}, "model"),
        (CHAT, {"messages": [{"role": "user", "content": SURROGATE}]}, "messages.0.content"),
        ("/v1/completions", {"prompt": SURROGATE}, "prompt"),
        ("/v1/completions", {"prompt": ["a", SURROGATE], "stream": True}, "prompt.1"),
        ("/v1/completions", {"prompt": "a", "kvblend": {"documents": [SURROGATE]}}, "kvblend.documents.0"),
        (DOCUMENTS, b'{"text": "x", "metadata": {"x": ' + b"9" * 5000 + b"}}", "metadata.x"),
        (CHAT, b'{"messages": [], "seed": ' + b"9" * 5000 + b"}", "seed"),
    ],
)  # fmt: skip
def test_what_is_no_text_or_no_number_is_refused_by_its_field(
    client: httpx.Client, path: str, body: Any, param: str
) -> None:
    assert refused(post(client, path, body))[1] == param


@pytest.mark.parametrize("path", [DOCUMENTS, QUERY, CHAT, "/v1/collections", "/v1/kv/lookup"])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [900, 100_000])
def test_json_that_nests_deep_is_refused(client: httpx.Client, path: str, opening: bytes, depth: int) -> None:
    closing = b"]" if opening == b"[" else b"1}"
    body = b'{"text": ' + opening * depth + (closing if opening == b"[" else b"1" + b"}" * depth) + b"}"
    if opening == b"[":
        body = b'{"text": ' + b"[" * depth + b"]" * depth + b"}"
    assert "deep" in refused(post(client, path, body))[0]


@pytest.mark.parametrize("raw", [b'{"text": "\xed\xa0\x80"}', b'{"text": "\xff"}'])
def test_bytes_that_are_no_utf_8_are_refused(client: httpx.Client, raw: bytes) -> None:
    assert "UTF-8" in refused(post(client, DOCUMENTS, raw))[0]


def test_a_pair_of_surrogates_is_text(client: httpx.Client) -> None:
    """The negative control: what JSON escapes of a character beyond the first 65,536 is."""
    body = b'{"text": "smile \\ud83d\\ude00", "metadata": {"face": "\\ud83d\\ude00", "big": 9007199254740993}}'
    assert post(client, DOCUMENTS, body).status_code == 202


@pytest.mark.parametrize("charset", ["utf-7", "undefined", "unicode_escape", "idna", "punycode"])
def test_a_file_name_in_an_odd_charset_is_a_name_or_refused(client: httpx.Client, charset: str) -> None:
    content = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="+2AA-\\ud800.txt"\r\n\r\nA text.\r\n--x--\r\n'
    )
    headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    assert client.post(DOCUMENTS, content=content, headers=headers).status_code in (202, 400)
    assert client.get(DOCUMENTS).status_code == 200


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape", "raw_unicode_escape"])
def test_a_text_in_an_odd_charset_is_text_or_refused(client: httpx.Client, charset: str) -> None:
    content = b"A text +2AA- \\ud800."
    files = [("files", ("odd.txt", content, f"text/plain; charset={charset}"))]
    response = client.post(DOCUMENTS, files=files)
    assert response.status_code in (202, 415)
    assert client.get(DOCUMENTS).status_code == 200


@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data; boundary=x"])
def test_an_upload_that_breaks_off_is_nobodys_error(
    client: httpx.Client, media_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = client.base_url
    head = (
        f"POST {DOCUMENTS} HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer secret\r\n"
        f"Content-Type: {media_type}\r\nContent-Length: 1000\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(head.encode() + b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n')
        time.sleep(0.2)  # into the request
    until = time.monotonic() + 60
    while 'status="499"' not in client.get("/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


def test_what_is_refused_before_its_route_is_counted(client: httpx.Client) -> None:
    assert refused(post(client, DOCUMENTS, b'{"text": "' + b"x" * (2 << 20) + b'"}'), 413)
    assert 'kvblend_requests_total{method="POST",route="none",status="413"}' in client.get("/metrics").text
