"""Spans of a service, made and sent by OpenTelemetry, whose packages are imported where tracing is on alone."""

import importlib
import logging
from contextlib import AbstractContextManager
from typing import Any, Self

import httpx
from fastapi import FastAPI

from kvblend.core.settings import TracingSettings

__all__ = ["Tracing"]

logger = logging.getLogger(__name__)

NOT_OF_REQUESTS = r"://[^/]+/(healthz|readyz|metrics|console/.*)(\?.*)?$"
"""Routes that probes and browsers ask all day."""


class Tracing:
    """A tracer of one service's own. Spans are sent by a thread beside it; one that cannot be sent is lost, and logged
    by OpenTelemetry.

    What OpenTelemetry's SDK reads from the environment holds: samplers, resource attributes, limits, headers.
    """

    def __init__(self, endpoint: str, settings: TracingSettings) -> None:
        """Raises ModuleNotFoundError where the packages of the extra `otel` are missing."""
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._routes, self._calls = FastAPIInstrumentor, HTTPXClientInstrumentor
        self._provider = TracerProvider(resource=Resource.create({"service.name": settings.service_name or "kvblend"}))
        self._provider.add_span_processor(_processor(endpoint, settings))
        self._tracer = self._provider.get_tracer("kvblend")

    @classmethod
    def of(cls, settings: TracingSettings) -> Self | None:
        """None where there is no receiver, or OpenTelemetry is not installed, which is said."""
        if settings.exporter_otlp_endpoint is None:
            return None
        try:
            return cls(settings.exporter_otlp_endpoint, settings)
        except ModuleNotFoundError as error:
            logger.warning(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, but requests are not traced: the package %r is not installed: "
                "pip install 'kvblend[otel]'",
                error.name,
            )
            return None

    def watch_routes(self, app: FastAPI) -> None:
        """Make a span of every request to the service, within its caller's trace."""
        self._routes.instrument_app(
            app, tracer_provider=self._provider, excluded_urls=NOT_OF_REQUESTS, exclude_spans=["receive", "send"]
        )

    def watch_calls(self, client: httpx.AsyncClient) -> None:
        """Make a span of every request that goes out by `client`, and pass the trace on."""
        self._calls.instrument_client(client, tracer_provider=self._provider)

    def step(self, name: str) -> AbstractContextManager[Any]:
        """A span within the current one, as long as the block."""
        return self._tracer.start_as_current_span(name)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _processor(endpoint: str, settings: TracingSettings) -> Any:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind

    class OfRequests(BatchSpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            if span.parent is None and span.kind is SpanKind.CLIENT:
                return  # what the service asks of its own accord, such as vLLM's health
            super().on_end(span)

    kind = settings.exporter_otlp_protocol.partition("/")[0]
    exporter = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{kind}.trace_exporter").OTLPSpanExporter
    return OfRequests(exporter(endpoint=settings.traces_endpoint))
