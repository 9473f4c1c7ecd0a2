"""A receiver of spans, as a collector is one: OTLP over HTTP or gRPC, decoded by OpenTelemetry's own protocol."""

import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Literal

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

__all__ = ["OTLPReceiver", "Span"]

WAIT_S = 120.0


@dataclass(frozen=True)
class Span:
    """`service`: who sent it. Ids are in hexadecimal; `parent` is empty where it has none."""

    name: str
    service: str
    trace_id: str
    id: str
    parent: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]


@dataclass
class OTLPReceiver:
    """Keeps what comes. `url` is known while it runs."""

    protocol: Literal["grpc", "http/protobuf"] = "http/protobuf"
    url: str = ""
    spans: list[Span] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._over_grpc() if self.protocol == "grpc" else self._over_http() as port:
            self.url = f"http://127.0.0.1:{port}"
            yield

    @contextmanager
    def _over_grpc(self) -> Iterator[int]:
        spans = self.spans

        class Servicer(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
                spans.extend(_spans(request))
                return ExportTraceServiceResponse()

        server = grpc.server(ThreadPoolExecutor(2, thread_name_prefix="OTLP receiver"))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()

    @contextmanager
    def _over_http(self) -> Iterator[int]:
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever, name="OTLP receiver")
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def trace(self, trace_id: str, names: Collection[str]) -> dict[str, list[Span]]:
        """The spans of a trace by name, once those of these names are there: exporters send in their own time."""
        deadline = time.monotonic() + WAIT_S
        while True:
            found: dict[str, list[Span]] = {}
            for span in [span for span in list(self.spans) if span.trace_id == trace_id]:
                found.setdefault(span.name, []).append(span)
            if found.keys() >= set(names):
                return found
            assert time.monotonic() < deadline, f"of {sorted(names)} there are {sorted(found)}"
            time.sleep(0.05)


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        service = _attributes(resource.resource.attributes)["service.name"]
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
            times = span.start_time_unix_nano, span.end_time_unix_nano
            yield Span(span.name, service, *ids, *times, _attributes(span.attributes))


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
