"""A server that answers like vLLM, from a rule instead of a model."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator
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


def scripted_token(position: int) -> int:
    """The likeliest token at a position, with probability `LIKELY`; the next one has the rest."""
    return position % NUM_TOKENS


@dataclass
class ScriptedEngine:
    """Streams greedy answers with log-probabilities; `url` is known while it runs."""

    url: str = ""
    token_s: float = 0.0
    """How long each token takes."""
    is_broken: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_aborted: int = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(self._app(), port=port, log_level="warning"))
        thread = Thread(target=server.run, name="scripted engine")
        thread.start()
        while not server.started:
            assert thread.is_alive()
            sleep(0.02)
        self.url = f"http://127.0.0.1:{port}"
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(30)

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"data": [{"id": "scripted", "max_model_len": 1000}]}

        @app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            body = await request.json()
            self.bodies.append(body)
            if self.is_broken:
                return JSONResponse({"error": {"message": "out of order"}}, status_code=400)
            return StreamingResponse(self._events(body), media_type="text/event-stream")

        return app

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        try:
            for index in range(body["max_tokens"]):
                await asyncio.sleep(self.token_s)
                token = scripted_token(len(body["prompt"]) + index)
                likeliest = {f"token_id:{token}": math.log(LIKELY), f"token_id:{token + 1}": math.log(1 - LIKELY)}
                logprobs = {"tokens": [f"token_id:{token}"], "top_logprobs": [likeliest]}
                yield f"data: {json.dumps({'choices': [{'index': 0, 'text': 'x', 'logprobs': logprobs}]})}\n\n"
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.num_aborted += 1
            raise
