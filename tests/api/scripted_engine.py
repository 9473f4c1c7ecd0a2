"""A server that answers like vLLM, from a rule instead of a model."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread
from time import sleep
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from kvblend.cli.engine import free_port

__all__ = ["LIKELY", "NUM_TOKENS", "ScriptedEngine", "order_in", "scripted_token"]

NUM_TOKENS = 7
LIKELY = 0.75
DEFAULT_MAX_TOKENS = 3
MOST_TOKENS = 100
NO_PRIORITIES = "Got priority 1 but Priority scheduling is not enabled."


def order_in(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request's order, wherever it is; empty where it has none."""
    text = (body.get("vllm_xargs") or {}).get("kvblend")
    order: dict[str, Any] = json.loads(text) if text else (body.get("kv_transfer_params") or {}).get("kvblend") or {}
    return order


def scripted_token(position: int) -> int:
    """The likeliest token at a position, with probability `LIKELY`; the next one has the rest."""
    return position % NUM_TOKENS


@dataclass
class ScriptedEngine:
    """Answers completions greedily with log-probabilities, and chats. `url` is known while it runs."""

    url: str = ""
    token_s: float = 0.0
    """How long each token takes."""
    words: Sequence[str] | Callable[[dict[str, Any]], Sequence[str]] = ()
    """What streamed answers say, a token each, or what gives it by the request's body; by default an x each."""
    is_broken: bool = False
    hangs: bool = False
    """Takes connections and never answers."""
    holds: Callable[[dict[str, Any]], bool] = lambda body: False
    """Whether a completion waits, as if it had not come."""
    max_model_len: int = 1000
    has_priorities: bool = True
    """Whether it takes a `priority` other than 0."""
    refusal: tuple[int, Any] | None = None
    """Status and body of what it answers to every completion instead."""
    deaths: list[int] = field(default_factory=list)
    """After how many tokens the connections of its next answers break, one each; encodes are no answers."""
    late_failure: dict[str, Any] | None = None
    """What a stream says after its first token in place of the rest."""
    ordered: Callable[[dict[str, Any]], None] = lambda order: None
    """Called with what a completion carries in `kv_transfer_params`, an order in `vllm_xargs` among it."""
    told: dict[str, Any] | None = None
    """`kv_transfer_params` of its whole answers; None: they have none."""
    render: Callable[[dict[str, Any]], list[int]] | None = None
    """The tokens of a conversation, as `/tokenize` is asked for them, or a ValueError; None: it has no such route."""
    rendered: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_aborted: int = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        port = free_port()
        server = uvicorn.Server(
            uvicorn.Config(self._app(), port=port, log_level="warning", timeout_graceful_shutdown=1)
        )
        thread = Thread(target=server.run, name="scripted engine")
        thread.start()
        while not server.started:
            assert thread.is_alive()
            sleep(0.02)
        self.url = f"http://127.0.0.1:{port}"
        try:
            yield
        finally:
            self.hangs, self.holds = False, lambda body: False
            server.should_exit = True
            thread.join(30)

    def _app(self) -> ASGIApp:
        app = FastAPI()

        async def noted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
                while self.hangs:  # noqa: ASYNC110 (set from another thread)
                    await asyncio.sleep(0.05)
            with suppress(ConnectionResetError):  # uvicorn breaks the connection under an answer that has not ended
                await app(scope, receive, send)

        @app.get("/health")
        async def health() -> dict[str, Any]:
            return {}

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"data": [{"id": "scripted", "max_model_len": self.max_model_len}]}

        @app.post("/v1/completions")
        @app.post("/v1/chat/completions")
        async def completions(request: Request) -> Response:
            body = await request.json()
            while self.holds(body):  # noqa: ASYNC110 (set from another thread)
                await asyncio.sleep(0.05)
            self.bodies.append(body)
            if self.is_broken:
                return JSONResponse({"error": {"message": "out of order"}}, status_code=400)
            if self.refusal is not None:
                return JSONResponse(self.refusal[1], status_code=self.refusal[0])
            if body.get("priority") and not self.has_priorities:
                return JSONResponse({"error": {"message": NO_PRIORITIES}}, status_code=400)
            order, params = order_in(body), body.get("kv_transfer_params") or {}
            if order or params:
                self.ordered({**params, "kvblend": order})
            is_encode = "encode" in order
            dies_after = self.deaths.pop(0) if self.deaths and not is_encode else None
            if not body.get("stream"):
                if dies_after is not None:
                    return StreamingResponse(self._dead())
                for _ in range(length_of(body)):
                    if await request.is_disconnected():
                        self.num_aborted += 1
                        break
                    await asyncio.sleep(self.token_s)
                return JSONResponse(self._whole(body))
            return StreamingResponse(self._events(body, dies_after), media_type="text/event-stream")

        @app.post("/tokenize")
        async def tokenize(request: Request) -> Response:
            body = await request.json()
            self.rendered.append(body)
            if self.render is None:
                return JSONResponse({"detail": "Not Found"}, status_code=404)
            try:
                return JSONResponse({"tokens": self.render(body)})
            except ValueError as error:
                return JSONResponse({"error": {"message": str(error)}}, status_code=400)

        @app.api_route("/{path:path}", methods=["GET", "POST", "DELETE"])
        async def told(request: Request) -> Response:
            """Any other route tells what came, with the status and the further header that its headers ask for."""
            what = {
                "method": request.method,
                "target": f"{request.scope['raw_path'].decode()}?{request.scope['query_string'].decode()}",
                "headers": [[name.decode(), value.decode()] for name, value in request.headers.raw],
                "body": (await request.body()).decode("latin-1"),
            }
            headers = {"X-Scripted": "yes", "Keep-Alive": "timeout=1"}
            name, colon, value = request.headers.get("x-answer-header", "").partition(": ")
            headers |= {name: value} if colon else {}
            status = int(request.headers.get("x-status", "200"))
            return JSONResponse(what, status_code=status, headers=headers)

        return noted

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": "xxx"}} if "messages" in body else {"text": "xxx"}
        whole = {"id": "cmpl-1", "created": 1, "model": "scripted", "choices": [choice], "usage": usage()}
        whole |= {} if self.told is None else {"kv_transfer_params": self.told}
        return {**whole, "metrics": {"queue_time_ms": 2.0, "time_to_first_token_ms": 5.0}}

    @staticmethod
    async def _dead() -> AsyncIterator[str]:
        for piece in list[str]():
            yield piece
        raise ConnectionResetError("as if it was killed")

    async def _events(self, body: dict[str, Any], dies_after: int | None) -> AsyncIterator[str]:
        envelope = {"id": "cmpl-1", "created": 1, "model": "scripted"}
        words = self.words(body) if callable(self.words) else self.words
        num_tokens = length_of(body, most=len(words) or MOST_TOKENS)
        try:
            for index in range(num_tokens):
                if index == dies_after:
                    raise ConnectionResetError("as if it was killed")
                await asyncio.sleep(self.token_s)
                token = scripted_token(len(body.get("prompt", "")) + index)
                likeliest = {f"token_id:{token}": math.log(LIKELY), f"token_id:{token + 1}": math.log(1 - LIKELY)}
                logprobs = {
                    "tokens": [f"token_id:{token}"],
                    "token_logprobs": [math.log(LIKELY)],
                    "top_logprobs": [likeliest],
                }
                is_last = index == num_tokens - 1
                choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if is_last else None}
                text = words[index] if words else "x"
                choice |= {"delta": {"content": text}} if "messages" in body else {"text": text, "logprobs": logprobs}
                yield f"data: {json.dumps({**envelope, 'choices': [choice]})}\n\n"
                if self.late_failure is not None:
                    yield f"data: {json.dumps(self.late_failure)}\n\n"
                    yield "data: [DONE]\n\n"
                    return
            if (body.get("stream_options") or {}).get("include_usage"):
                yield f"data: {json.dumps({**envelope, 'choices': [], 'usage': usage()})}\n\n"
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.num_aborted += 1
            raise


def length_of(body: dict[str, Any], *, most: int = MOST_TOKENS) -> int:
    """How many tokens an answer has, whatever a client asks for."""
    asked = body.get("max_tokens")
    return min(asked if asked and isinstance(asked, int) else DEFAULT_MAX_TOKENS, most)


def usage() -> dict[str, int]:
    """What every scripted answer counts."""
    return {"prompt_tokens": 5, "completion_tokens": DEFAULT_MAX_TOKENS, "total_tokens": 5 + DEFAULT_MAX_TOKENS}
