"""Talk to one vLLM server over its OpenAI-compatible HTTP API."""

import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx
from httpx_sse import EventSource, SSEError
from pydantic import SecretStr

from kvblend.api.request_context import engine_headers
from kvblend.api.tracing import Tracing
from kvblend.core.errors import (
    EngineFailedError,
    EngineTimeoutError,
    EngineUnavailableError,
    KVBlendError,
    NotFoundError,
    RefusedByEngineError,
)

__all__ = ["Content", "EngineClient"]

Content = bytes | AsyncIterable[bytes]

CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 5.0


class EngineClient:
    """One vLLM server. Every method raises EngineUnavailableError where it does not answer, dies while it does, or does
    not take the service's key, EngineTimeoutError where it is silent for too long, and EngineFailedError with vLLM's
    words where it says that it failed. What vLLM refuses of the client's is a RefusedByEngineError with vLLM's own
    status, or a NotFoundError for a model that it does not serve."""

    def __init__(self, url: str, *, api_key: SecretStr | None = None, timeout_s: float | None = None) -> None:
        """`timeout_s`: for which it may send nothing; a long prefill on a CPU is silent for minutes."""
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        keeps_no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # one client's would be another's
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=timeout,
            limits=limits,
            cookies=keeps_no_cookies,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    def watch(self, tracing: Tracing) -> None:
        """Make a span of each request from here on, and pass its trace on to the server."""
        tracing.watch_calls(self._http)

    async def is_healthy(self, *, timeout_s: float | None = None) -> bool:
        """Whether the server answers its health check in time, which is a few seconds where nothing else is said."""
        try:
            response = await self._http.get("/health", timeout=timeout_s or PROBE_TIMEOUT_S)
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    async def models(self) -> list[dict[str, Any]]:
        """The server's model cards; the base model first, with its `max_model_len`."""
        async with self._failures():
            response = await self._http.get("/v1/models", timeout=PROBE_TIMEOUT_S)
            _check(response)
            cards: list[dict[str, Any]] = response.json()["data"]
        return cards

    async def post(
        self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Send a request, with `headers` besides, and return vLLM's whole answer."""
        async with self._failures():
            response = await self._http.post(path, json=body, headers={**engine_headers(), **(headers or {})})
            _check(response)
            answer: dict[str, Any] = response.json()
        return answer

    async def stream(
        self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Send a request with `stream` set, and `headers` besides, and yield vLLM's chunks. Closing the iterator aborts
        the request."""
        told = {**engine_headers(), **(headers or {})}
        streamed = self._http.stream("POST", path, json={**body, "stream": True}, headers=told)
        async with self._failures(), streamed as response:
            if response.status_code != 200:
                await response.aread()
            _check(response)
            async for event in EventSource(response).aiter_sse():
                if event.data == "[DONE]":
                    return
                chunk: dict[str, Any] = json.loads(event.data)
                if "error" in chunk:
                    raise _refusal(chunk["error"], status=_status_of(chunk["error"]))
                yield chunk
            raise EngineUnavailableError(f"the vLLM server at {self.url} ended its answer early")

    @asynccontextmanager
    async def passing(
        self, method: str, target: bytes, *, headers: Sequence[tuple[bytes, bytes]], content: Content
    ) -> AsyncIterator[httpx.Response]:
        """Send a request as it is, with the service's key; yields vLLM's answer, whatever its status, its body unread.

        `target`: path and query as they go over the wire. Leaving aborts the request.
        """
        url = httpx.URL(self.url)
        url = url.copy_with(raw_path=url.raw_path.rstrip(b"/") + target)
        async with self._failures(), self._http.stream(method, url, headers=headers, content=content) as response:
            if response.status_code == 401:
                await response.aread()
                _check(response)
            yield response

    @asynccontextmanager
    async def _failures(self) -> AsyncIterator[None]:
        try:
            yield
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise EngineTimeoutError(f"the vLLM server at {self.url} is silent for too long") from error
        except (httpx.HTTPError, SSEError) as error:
            cause = str(error) or type(error).__name__
            raise EngineUnavailableError(f"the vLLM server at {self.url} does not answer: {cause}") from error
        except json.JSONDecodeError as error:
            raise EngineUnavailableError(f"the server at {self.url} does not answer as vLLM does") from error


def _check(response: httpx.Response) -> None:
    """Raise for an answer that is not a success."""
    if response.status_code == 200:
        return
    error: Any
    try:
        error = response.json()["error"]
    except (json.JSONDecodeError, KeyError, TypeError):
        error = {"message": response.text[:500] or f"HTTP status {response.status_code}"}
    raise _refusal(error, status=response.status_code)


def _status_of(error: Any) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500


def _refusal(error: Any, *, status: int) -> KVBlendError:
    fields = error if isinstance(error, dict) else {"message": str(error)}
    message, param = str(fields.get("message")), fields.get("param")
    if status == 503:
        return EngineUnavailableError(f"vLLM takes no requests: {message}")
    if status >= 500:
        return EngineFailedError(f"vLLM failed: {message}")
    if status == 401:
        return EngineUnavailableError(f"vLLM does not take the service's key, KVBLEND_ENGINE_API_KEY: {message}")
    if status == 404:
        return NotFoundError(message, param=param)
    return RefusedByEngineError(message, param=param, status=status)
