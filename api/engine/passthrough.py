"""Requests that vLLM answers alone: sent on as they came, and the answer given back as it comes."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial

from kvblend.api.engine.client import Content
from kvblend.api.engine.plain import NO_DOCUMENTS
from kvblend.api.engine.replicas import EngineFacts, Replica, Replicas
from kvblend.api.metrics import Metrics
from kvblend.core.errors import EngineUnavailableError
from kvblend.core.report import BlendReport

__all__ = ["Headers", "PassedAnswer", "PassedRequest", "Passthrough"]

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    [
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ]
)
"""Headers of one connection, which the next one has its own of."""

OF_THE_SERVICE = frozenset([b"host", b"authorization", b"x-api-key", b"expect", b"origin"])
"""Of a request: what the service is told, not vLLM; the client's key is the service's, and so is whose pages may call
it: vLLM would let anybody's."""

OF_VLLMS_SERVER = frozenset([b"server", b"date"])
"""Of an answer: what the service's own HTTP server says of itself."""
CORS = b"access-control-"

PRIORITY = b"x-vllm-priority"
ERROR_EVENT = b'data: {"error"'


@dataclass(frozen=True)
class PassedRequest:
    """`target` is the path and query as they were written. `is_answer`: it asks the model for an answer, which is
    counted among the answers."""

    method: str
    target: bytes
    headers: Headers
    content: Content
    is_answer: bool = False


@dataclass(frozen=True)
class PassedAnswer:
    """vLLM's answer, whose `body` has yet to come: it raises EngineUnavailableError where it breaks off. `held` is open
    until it has come, and closing it aborts the request."""

    status: int
    headers: Headers
    body: AsyncIterator[bytes]
    held: AsyncExitStack

    @property
    def is_stream(self) -> bool:
        """Whether it is a stream of events."""
        return _is_stream(self.headers)


class Passthrough:
    """Passes requests to the least busy vLLM server; where it dies before it answers, there is a second try."""

    def __init__(self, replicas: Replicas, metrics: Metrics) -> None:
        self._replicas = replicas
        self._metrics = metrics

    async def send(self, request: PassedRequest) -> PassedAnswer:
        """vLLM's answer, whatever its status, once the first bytes of its body are there.

        What `content` yields can be sent but once: for that there is no second try. Raises EngineUnavailableError where
        there is no answer.
        """
        if isinstance(request.content, bytes):
            items = self._replicas.answers(partial(self._ask, request))
        else:
            items = self._ask(request, *await self._replicas.choose())
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(aclosing(items))
            head = await anext(items)
            assert isinstance(head, _Head)
            return PassedAnswer(head.status, head.headers, _parts(items), stack.pop_all())
        raise AssertionError("no context of the stack swallows what is raised in it")

    async def _ask(
        self, request: PassedRequest, replica: Replica, facts: EngineFacts
    ) -> AsyncGenerator["_Head | bytes", None]:
        """The head of one server's answer, then its body as it comes."""
        headers = _for_engine(request)
        sent_at = time.perf_counter()
        with replica.request():
            async with replica.engine.passing(
                request.method, request.target, headers=headers, content=request.content
            ) as response:
                head = _Head(response.status_code, _without(response.headers.raw, OF_VLLMS_SERVER))
                parts = response.aiter_raw()
                first = await anext(parts, b"")
                ttft_ms = (time.perf_counter() - sent_at) * 1000 if _is_stream(head.headers) else None
                if (head.status >= 500 or first.startswith(ERROR_EVENT)) and not await replica.engine.is_healthy():
                    raise EngineUnavailableError(f"the vLLM server at {replica.engine.url} died: {first[:500]!r}")
                yield head
                yield first
                async for part in parts:
                    yield part
        if request.is_answer and head.status == 200:
            self._metrics.answer(BlendReport(outcome="prefilled", reason=NO_DOCUMENTS, ttft_ms=ttft_ms))


@dataclass(frozen=True)
class _Head:
    status: int
    headers: Headers


async def _parts(items: AsyncIterator[_Head | bytes]) -> AsyncIterator[bytes]:
    async for item in items:
        assert isinstance(item, bytes)
        yield item


def _is_stream(headers: Headers) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def _for_engine(request: PassedRequest) -> Headers:
    headers = [
        (name, value)
        for name, value in _without(request.headers, OF_THE_SERVICE)
        if name != PRIORITY or b"-" not in value  # before others, as it may not be by its body either
    ]
    if isinstance(request.content, bytes):  # of another length than the client's where something was changed in it
        headers = [header for header in headers if header[0] != b"content-length"]
    if not any(name == b"accept-encoding" for name, _ in headers):
        headers.append((b"accept-encoding", b"identity"))  # httpx would offer what the client cannot read
    return headers


def _without(headers: Iterable[tuple[bytes, bytes]], others: frozenset[bytes]) -> Headers:
    """Headers that go on: neither of one connection, by themselves or since `Connection` names them, nor `others`."""
    lower = [(name.lower(), value) for name, value in headers]
    named = {each.strip().lower() for name, value in lower if name == b"connection" for each in value.split(b",")}
    return [
        header for header in lower if header[0] not in HOP_BY_HOP | others | named and not header[0].startswith(CORS)
    ]
