"""What the service has no part in goes through it: to vLLM as it came, and back as vLLM answers."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvblend.api.engine.passthrough import PassedRequest, Passthrough
from kvblend.api.engine.replicas import Replica, Replicas
from kvblend.api.metrics import Metrics
from kvblend.core.errors import EngineUnavailableError
from tests.api.scripted_service import ScriptedService, scripted_service

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def scripted(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    with scripted_service(
        tmp_path_factory.mktemp("passed"),
        model=demo_model_path,
        embedding_model=embedding_model_path,
        api_key="ours",
        engine_api_key="vllms",
    ) as service:
        yield service


@pytest.fixture
def client(scripted: ScriptedService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=scripted.url, headers={"Authorization": "Bearer ours"}, timeout=60) as client:
        yield client


def answers(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    name = 'kvblend_answers_total{outcome="prefilled"} '
    return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), 0.0)


@pytest.mark.parametrize("status", [200, 202, 404, 422, 500])
def test_a_request_goes_through_as_it_came(client: httpx.Client, status: int) -> None:
    body = b'{ "input" : "caf\\u00e9",  "model":null}\n'
    headers = [
        ("Content-Type", "application/json; charset=utf-8"), ("X-Request-Id", "7"), ("X-Twice", "a"), ("X-Twice", "b"),
        ("X-Status", str(status)), ("Connection", "keep-alive, X-Mine"), ("X-Mine", "of this connection"),
    ]  # fmt: skip
    answer = client.post("/v1/embeddings?a=1&b=%2F%20x&a=2", content=body, headers=headers)
    assert answer.status_code == status
    told = answer.json()
    assert told["method"] == "POST" and told["body"] == body.decode()
    assert told["target"] == "/v1/embeddings?a=1&b=%2F%20x&a=2"
    came = [(name, value) for name, value in told["headers"]]
    assert [value for name, value in came if name == "x-twice"] == ["a", "b"]
    assert ("x-request-id", "7") in came and ("content-type", "application/json; charset=utf-8") in came
    assert "x-mine" not in dict(came), "what Connection names is of one connection"
    assert [value for name, value in came if name == "authorization"] == ["Bearer vllms"], "the key is the service's"
    assert answer.headers["x-scripted"] == "yes"
    assert "keep-alive" not in answer.headers and len(answer.headers.get_list("date")) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/resp_1?stream=true"), ("POST", "/v1/responses/resp_1/cancel"), ("POST", "/v1/responses"),
        ("POST", "/v1/embeddings"), ("POST", "/detokenize"), ("POST", "/rerank"), ("POST", "/v1/score"),
        ("POST", "/pooling"), ("POST", "/classify"), ("POST", "/v1/messages"), ("GET", "/version"),
    ],
)  # fmt: skip
def test_inference_routes_go_through(client: httpx.Client, method: str, path: str) -> None:
    told = client.request(method, path, json={"a": 1} if method == "POST" else None).json()
    assert (told["method"], told["target"].rstrip("?")) == (method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/sleep"), ("POST", "/wake_up"), ("POST", "/reset_prefix_cache"), ("POST", "/collective_rpc"),
        ("POST", "/v1/load_lora_adapter"), ("POST", "/start_profile"), ("POST", "/scale_elastic_ep"),
        ("POST", "/inference/v1/generate"), ("POST", "/v1/responses/..%2F..%2Fsleep"), ("GET", "/v1/responses/a/b"),
        ("POST", "/update_weights"), ("GET", "/server_info"),
    ],
)  # fmt: skip
def test_an_administrators_routes_do_not(
    scripted: ScriptedService, client: httpx.Client, method: str, path: str
) -> None:
    marked = {"X-Refused": "yes"}
    answer = client.request(method, path, json={} if method == "POST" else None, headers=marked)
    assert answer.status_code in (404, 405)
    assert not any("x-refused" in headers for headers in scripted.engine.headers), "vLLM hears nothing of it"


def test_an_administrator_may_have_them(
    scripted: ScriptedService, demo_model_path: Path, embedding_model_path: Path, tmp_path: Path
) -> None:
    with scripted_service(
        tmp_path, model=demo_model_path, embedding_model=embedding_model_path, engine_admin=True, api_key="ours"
    ) as service:
        told = httpx.post(f"{service.url}/sleep?level=2", headers={"Authorization": "Bearer ours"}).json()
        assert told["target"] == "/sleep?level=2"
        assert httpx.post(f"{service.url}/sleep").status_code == 401
        own = httpx.get(f"{service.url}/v1/collections", headers={"Authorization": "Bearer ours"}).json()
        assert "target" not in own, "the service's own routes stay its own"
        assert httpx.get(f"{service.url}/healthz").json() == {"status": "ok"}


def test_orders_are_taken_out_and_nothing_else(client: httpx.Client) -> None:
    orders = {"kv_transfer_params": {"kvblend": {}}, "vllm_xargs": {"kvblend": "y", "session": "z"}}
    kept = {"model": "m", "input": "é", "priority": 5, "cache_salt": "salt"}
    told = client.post("/v1/responses", json={**kept, **orders}).json()
    assert json.loads(told["body"].encode("latin-1")) == {**kept, "vllm_xargs": {"session": "z"}}
    assert dict(told["headers"])["content-length"] == str(len(told["body"]))


def test_a_body_that_is_no_json_is_not_read_as_such(client: httpx.Client) -> None:
    sound = bytes(range(256)) * 1000
    form = client.post("/v1/audio/transcriptions", files={"file": ("a.wav", sound)}, data={"model": "m"}).json()
    assert sound.decode("latin-1") in form["body"]
    assert client.post("/pooling", content=b"\xff{", headers={"Content-Type": "text/plain"}).json()["body"] == "\xff{"
    refused = client.post("/pooling", content=b'{"a": NaN}', headers={"Content-Type": "application/json"})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "a"
    assert client.post("/pooling", content=b'{"a"', headers={"Content-Type": "application/json"}).status_code == 400


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_kvblend_is_vllms_own_and_counted(
    scripted: ScriptedService, client: httpx.Client, path: str, stream: bool
) -> None:
    body = {**CHAT, "prompt": "?", "stream": stream} if path == "/v1/completions" else {**CHAT, "stream": stream}
    num_before = answers(client)
    ours, theirs = client.post(path, json=body), httpx.post(f"{scripted.engine.url}{path}", json=body)
    assert ours.content == theirs.content and "kvblend" not in ours.text
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert answers(client) == num_before + 1


def test_a_refusal_is_vllms_own(scripted: ScriptedService, client: httpx.Client) -> None:
    scripted.engine.refusal = (418, {"error": {"message": "a teapot", "type": "Tea", "param": "x", "code": 418}})
    try:
        answer = client.post("/v1/chat/completions", json=CHAT)
        scripted.engine.refusal = (401, {"error": "Unauthorized"})
        unauthorized = client.post("/v1/chat/completions", json=CHAT)
    finally:
        scripted.engine.refusal = None
    assert (answer.status_code, answer.json()["error"]["message"]) == (418, "a teapot")
    assert unauthorized.status_code == 503, "it is not the client's key that vLLM does not take"


def test_a_stream_that_breaks_off_ends_with_an_error(scripted: ScriptedService, client: httpx.Client) -> None:
    scripted.engine.deaths.append(2)
    answer = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert answer.status_code == 200 and len(data) == 3
    assert json.loads(data[-1])["error"]["code"] == "engine_unavailable"


async def test_a_client_that_leaves_a_stream_aborts_it(scripted: ScriptedService) -> None:
    scripted.engine.token_s = 0.05
    num_before = scripted.engine.num_aborted
    try:
        async with (
            httpx.AsyncClient(base_url=scripted.url, headers={"Authorization": "Bearer ours"}) as client,
            client.stream("POST", "/v1/chat/completions", json={**CHAT, "max_tokens": 100, "stream": True}) as answer,
        ):
            assert await anext(answer.aiter_lines())
        async with asyncio.timeout(30):
            while scripted.engine.num_aborted == num_before:  # noqa: ASYNC110 (set in another thread)
                await asyncio.sleep(0.02)
    finally:
        scripted.engine.token_s = 0.0


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_an_answer_that_breaks_off_says_so(tmp_path: Path, kind: str) -> None:
    """A client of a stream hears of it by its last event, of another body by its connection's end."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wanted = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        if wanted == b"/v1/models":
            cards = b'{"data": [{"id": "m", "max_model_len": 100}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(cards), cards))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: 900\r\n\r\n" % kind.encode())
            writer.write(b'data: {"a": 1}\n\n')
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        replicas = Replicas([replica := Replica(url, f"ipc://{tmp_path}/control.sock")])
        try:
            passed = await Passthrough(replicas, Metrics()).send(PassedRequest("GET", b"/a", [], b""))
            assert passed.is_stream == (kind == "text/event-stream")
            parts: list[bytes] = []
            with pytest.raises(EngineUnavailableError, match="closed connection"):
                async with passed.held:
                    async for part in passed.body:
                        parts.append(part)
            assert parts == [b'data: {"a": 1}\n\n']
            assert not replica.is_known, "it is asked anew before the next request"
        finally:
            await replicas.close()
