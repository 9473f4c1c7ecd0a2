"""The request that is being answered, as its log lines, its trace and vLLM are told of it."""

import logging
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self

from kvblend.api.tracing import Tracing

__all__ = ["RequestContext", "add_ids", "engine_headers", "log_fields", "step"]

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")


@dataclass(frozen=True)
class RequestContext:
    """`trace_headers`: W3C's `traceparent` and `tracestate` as the caller sent them."""

    request_id: str
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    tracing: Tracing | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str], tracing: Tracing | None) -> Self:
        """From a request's headers, by lower-case name; an id or a trace that is malformed counts as none."""
        given, parent = headers.get("x-request-id", ""), headers.get("traceparent", "")
        trace_headers = {}
        if TRACEPARENT.fullmatch(parent):
            trace_headers["traceparent"] = parent
            if TRACESTATE.fullmatch(state := headers.get("tracestate", "")):
                trace_headers["tracestate"] = state
        return cls(given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex, trace_headers, tracing)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be the current one in the block, and in the tasks and threads that it begins."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[RequestContext | None] = ContextVar("kvblend_request", default=None)


def step(name: str) -> AbstractContextManager[Any]:
    """A span of the current request's trace, as long as the block; nothing where requests are not traced."""
    current = _current.get()
    return nullcontext() if current is None or current.tracing is None else current.tracing.step(name)


def log_fields() -> dict[str, str]:
    """Ids of the current request, its trace and its span, as far as there are any."""
    current = _current.get()
    if current is None:
        return {}
    fields = {"request_id": current.request_id}
    if parent := TRACEPARENT.fullmatch(current.trace_headers.get("traceparent", "")):
        fields |= {"trace_id": parent[1], "span_id": parent[2]}
    return {**fields, **(_span_ids() if current.tracing is not None else {})}


def add_ids(record: logging.LogRecord) -> bool:
    """Filter of a log's handler: every line has the fields of its request."""
    for name, value in log_fields().items():
        setattr(record, name, value)
    return True


def engine_headers() -> dict[str, str]:
    """What vLLM is told of the current request: its id, and its trace where OpenTelemetry does not pass that on."""
    current = _current.get()
    return {} if current is None else {"x-request-id": current.request_id, **current.trace_headers}


def _span_ids() -> dict[str, str]:
    own = sys.modules["opentelemetry.trace"].get_current_span().get_span_context()
    return {"trace_id": f"{own.trace_id:032x}", "span_id": f"{own.span_id:016x}"} if own.is_valid else {}
