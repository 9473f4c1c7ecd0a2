"""A proxy between prefill and decode nodes as those of vLLM's stacks are: it has a request prefilled at one server, and
the other one decode with what the first one's answer says of the KV. `kv_transfer_params` are its own."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from kvblend.cli.engine import free_port

__all__ = ["Proxy", "proxy"]

HAND_ON = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
JSON, EVENTS = "application/json", "text/event-stream"


@dataclass
class Proxy:
    """`between` is called when a request is prefilled and not yet handed on."""

    prefill_url: str
    decode_url: str
    url: str = ""
    between: Callable[[], object] = lambda: None

    def app(self) -> FastAPI:
        http = httpx.AsyncClient(timeout=300, trust_env=False)

        @asynccontextmanager
        async def closing(app: FastAPI) -> AsyncIterator[None]:
            async with http:
                yield

        app = FastAPI(lifespan=closing)

        @app.exception_handler(httpx.HTTPError)
        async def failed(request: Request, error: Exception) -> Response:
            return JSONResponse({"error": {"message": f"a node failed: {error!r}", "code": 502}}, status_code=502)

        @app.post("/v1/{route:path}")
        async def answered(route: str, request: Request) -> Response:
            body = await request.json()
            asked = {**body, "kv_transfer_params": HAND_ON, "max_tokens": 1, "stream": False}
            asked.pop("stream_options", None)
            prefilled = await http.post(f"{self.prefill_url}/v1/{route}", json=asked)
            if prefilled.status_code != 200:
                return Response(prefilled.content, prefilled.status_code, media_type=JSON)
            await asyncio.to_thread(self.between)
            body["kv_transfer_params"] = prefilled.json()["kv_transfer_params"]
            decode_url = f"{self.decode_url}/v1/{route}"
            if not body.get("stream"):
                decoded = await http.post(decode_url, json=body)
                return Response(decoded.content, decoded.status_code, media_type=JSON)

            async def chunks() -> AsyncIterator[bytes]:
                async with http.stream("POST", decode_url, json=body) as decoded:
                    async for chunk in decoded.aiter_bytes():
                        yield chunk

            return StreamingResponse(chunks(), media_type=EVENTS)

        @app.get("/{path:path}")
        async def told(path: str) -> Response:
            answer = await http.get(f"{self.prefill_url}/{path}")
            return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

        return app


@contextmanager
def proxy(prefill_url: str, decode_url: str) -> Iterator[Proxy]:
    """Run one in a thread. What asks for no answer goes to the prefill node."""
    made, port = Proxy(prefill_url, decode_url), free_port()
    server = uvicorn.Server(uvicorn.Config(made.app(), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, name="prefill and decode proxy")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        made.url = f"http://127.0.0.1:{port}"
        yield made
    finally:
        server.should_exit = True
        thread.join(30)
