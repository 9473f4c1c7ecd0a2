"""A server that answers like vLLM, from a rule instead of a model."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from time import sleep
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from kvblend.cli.engine import free_port

__all__ = ["LIKELY", "NUM_TOKENS", "ScriptedEngine", "scripted_token"]

NUM_TOKENS = 7
LIKELY = 0.75
DEFAULT_MAX_TOKENS = 3
MOST_TOKENS = 100


def scripted_token(position: int) -> int:
    """The likeliest token at a position, with probability `LIKELY`; the next one has the rest."""
    return position % NUM_TOKENS


@dataclass
class ScriptedEngine:
    """Answers completions greedily with log-probabilities, and chats. `url` is known while it runs."""

    url: str = ""
    token_s: float = 0.0
    """How long each token takes."""
    is_broken: bool = False
    hangs: bool = False
    """Takes connections and never answers."""
    max_model_len: int = 1000
    refusal: tuple[int, Any] | None = None
    """Status and body of what it answers to every completion instead."""
    ordered: Callable[[dict[str, Any]], None] = lambda order: None
    """Called with what a completion carries in `kv_transfer_params`."""
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
            self.hangs = False
            server.should_exit = True
            thread.join(30)

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def noted(request: Request, answer: Any) -> Any:
            self.headers.append(dict(request.headers))
            while self.hangs:  # noqa: ASYNC110 (set from another thread)
                await asyncio.sleep(0.05)
            return await answer(request)

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
            self.bodies.append(body)
            if self.is_broken:
                return JSONResponse({"error": {"message": "out of order"}}, status_code=400)
            if self.refusal is not None:
                return JSONResponse(self.refusal[1], status_code=self.refusal[0])
            if body.get("kv_transfer_params"):
                self.ordered(body["kv_transfer_params"])
            if not body.get("stream"):
                return JSONResponse(self._whole(body))
            return StreamingResponse(self._events(body), media_type="text/event-stream")

        return app

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": "xxx"}} if "messages" in body else {"text": "xxx"}
        return {"id": "cmpl-1", "created": 1, "model": "scripted", "choices": [choice], "usage": usage()}

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        envelope = {"id": "cmpl-1", "created": 1, "model": "scripted"}
        try:
            for index in range(min(body.get("max_tokens") or DEFAULT_MAX_TOKENS, MOST_TOKENS)):
                await asyncio.sleep(self.token_s)
                token = scripted_token(len(body.get("prompt", "")) + index)
                likeliest = {f"token_id:{token}": math.log(LIKELY), f"token_id:{token + 1}": math.log(1 - LIKELY)}
                logprobs = {
                    "tokens": [f"token_id:{token}"],
                    "token_logprobs": [math.log(LIKELY)],
                    "top_logprobs": [likeliest],
                }
                choice: dict[str, Any] = {"index": 0, "finish_reason": None}
                choice |= {"delta": {"content": "x"}} if "messages" in body else {"text": "x", "logprobs": logprobs}
                yield f"data: {json.dumps({**envelope, 'choices': [choice]})}\n\n"
            if (body.get("stream_options") or {}).get("include_usage"):
                yield f"data: {json.dumps({**envelope, 'choices': [], 'usage': usage()})}\n\n"
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.num_aborted += 1
            raise


def usage() -> dict[str, int]:
    """What every scripted answer counts."""
    return {"prompt_tokens": 5, "completion_tokens": DEFAULT_MAX_TOKENS, "total_tokens": 5 + DEFAULT_MAX_TOKENS}
