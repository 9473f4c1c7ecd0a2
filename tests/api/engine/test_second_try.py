"""A vLLM server that dies, fails or falls silent under an answer: a second try, or an error that says so."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.scripted_engine import ScriptedEngine
from tests.api.scripted_service import scripted_service

BLENDED = {"documents": ["A passage."]}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 4}
COMPLETION: dict[str, Any] = {"prompt": "Once", "max_tokens": 4}
REQUESTS = {
    "chat": ("/v1/chat/completions", CHAT),
    "blended chat": ("/v1/chat/completions", {**CHAT, "kvblend": BLENDED}),
    "completion": ("/v1/completions", COMPLETION),
    "blended completion": ("/v1/completions", {**COMPLETION, "kvblend": BLENDED}),
    "query": ("/v1/collections/c/query", {"question": "?", "max_tokens": 4}),
}


@dataclass(frozen=True)
class Two:
    """A service of two engines."""

    url: str
    engines: tuple[ScriptedEngine, ...]

    def deaths(self, after: list[int]) -> None:
        """The next answers break off after so many tokens, whichever engine they are of."""
        for each in self.engines:
            each.deaths = after


@pytest.fixture(scope="module")
def two(demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    with scripted_service(
        tmp_path_factory.mktemp("second"),
        model=demo_model_path,
        embedding_model=embedding_model_path,
        others=[ScriptedEngine(max_model_len=100_000)],
        engine_timeout=1.0,
        variants=0.0,
    ) as service:
        httpx.post(f"{service.url}/v1/collections", json={"name": "c"}, timeout=60)
        httpx.post(f"{service.url}/v1/collections/c/documents", json={"text": "The bridge of Vik."}, timeout=60)
        yield Two(service.url, (service.engine, *service.others))


@pytest.fixture(autouse=True)
def calm(two: Two) -> Iterator[None]:
    yield
    for each in two.engines:
        each.deaths, each.late_failure, each.refusal, each.token_s = [], None, None, 0.0


def ask(service: Two, request: str, *, stream: bool) -> httpx.Response:
    path, body = REQUESTS[request]
    return httpx.post(f"{service.url}{path}", json={**body, "stream": stream}, timeout=60)


def num_answers(two: Two) -> int:
    """Requests that both engines got and that are no encodes."""
    return sum(body.get("max_tokens") == 4 for each in two.engines for body in each.bodies)


def last_data(answer: httpx.Response) -> dict[str, Any]:
    """The last event's JSON of a stream that ended with one."""
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert data[-1] != "[DONE]"
    found: dict[str, Any] = json.loads(data[-1])
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_server_that_dies_before_the_first_token_costs_nothing(two: Two, request_name: str, stream: bool) -> None:
    """Negative control: where the second server dies as well, there is no third try."""
    before = num_answers(two)
    two.deaths([0])
    answer = ask(two, request_name, stream=stream)
    assert answer.status_code == 200 and '"error"' not in answer.text
    assert num_answers(two) == before + 2
    two.deaths([0, 0])
    assert ask(two, request_name, stream=stream).status_code == 503
    assert num_answers(two) == before + 4


def test_nor_does_one_that_dies_while_it_rewrites_a_question(two: Two) -> None:
    history = [{"role": "user", "content": "Tell me of Vik."}, {"role": "assistant", "content": "It has a bridge."}]
    two.deaths([0])
    body = {**REQUESTS["query"][1], "history": history, "rewrite": True}
    answer = httpx.post(f"{two.url}{REQUESTS['query'][0]}", json=body, timeout=60)
    assert answer.status_code == 200 and answer.json()["rewritten"] == "xxx"
    assert two.engines[0].deaths == []


@pytest.mark.parametrize(("request_name", "stream"), [*((name, True) for name in REQUESTS), ("query", False)])
def test_one_that_dies_later_ends_the_answer_with_an_error(two: Two, request_name: str, stream: bool) -> None:
    before = num_answers(two)
    two.deaths([2])
    answer = ask(two, request_name, stream=stream)
    if stream:
        assert answer.status_code == 200 and last_data(answer)["error"]["code"] == "engine_unavailable"
        assert ("event: error" in answer.text) == (request_name == "query")
    else:
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
    assert num_answers(two) == before + 1, "what a client has seen a part of is not begun anew"


@pytest.mark.parametrize("request_name", REQUESTS)
def test_what_vllm_says_of_its_failure_is_passed_on(two: Two, request_name: str) -> None:
    """As it is where the request is vLLM's own, else as an error of the service's."""
    is_vllms_own = request_name in ("chat", "completion")
    failure = {"error": {"message": "the cat sat on the cable", "type": "InternalServerError", "code": 500}}
    for each in two.engines:
        each.refusal = (500, failure)
    before = num_answers(two)
    answer = ask(two, request_name, stream=False)
    assert answer.status_code == (500 if is_vllms_own else 502)
    assert answer.json()["error"]["code"] == (500 if is_vllms_own else "engine_failed")
    assert "the cat sat on the cable" in answer.json()["error"]["message"]
    assert num_answers(two) == before + 1, "a server that lives and fails is not asked again"
    for each in two.engines:
        each.refusal, each.late_failure = None, failure
    streamed = ask(two, request_name, stream=True)
    if is_vllms_own:
        assert streamed.text.endswith(f"data: {json.dumps(failure)}\n\ndata: [DONE]\n\n")
        return
    error = last_data(streamed)["error"]
    assert error["code"] == "engine_failed" and "the cat sat on the cable" in error["message"]


@pytest.mark.parametrize("request_name", ["chat", "query"])
def test_one_that_falls_silent_is_given_up(two: Two, request_name: str) -> None:
    for each in two.engines:
        each.token_s = 20.0
    for stream in (False, True):
        answer = ask(two, request_name, stream=stream)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "engine_timeout"
    for each in two.engines:
        each.token_s = 0.2
    path, body = REQUESTS[request_name]
    body = {**body, "stream": True, "max_tokens": 100}
    with httpx.stream("POST", f"{two.url}{path}", json=body, timeout=60) as answer:
        for each in two.engines:  # in the midst of the answer
            each.token_s = 20.0
        assert answer.status_code == 200 and '"code":"engine_timeout"' in "".join(answer.iter_text())
