"""One trace from a client to the vLLM server, received as a collector would; and what goes on without OpenTelemetry."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider

from kvblend.api.request_context import RequestContext, engine_headers, log_fields
from kvblend.core.settings import TracingSettings
from kvblend.sdk import Client
from tests.api.scripted_service import ScriptedService, scripted_service
from tests.otlp_receiver import OTLPReceiver

ROUTE = "POST /v1/collections/{collection}/query"
STEPS = ("kvblend.retrieve", "kvblend.order", "kvblend.plan")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module", params=["http/protobuf", "grpc"])
def receiver(request: pytest.FixtureRequest) -> Iterator[OTLPReceiver]:
    receiver = OTLPReceiver(request.param)
    with receiver.running():
        yield receiver


@pytest.fixture(scope="module")
def traced(
    receiver: OTLPReceiver, tmp_path_factory: pytest.TempPathFactory, demo_model_path: Path, embedding_model_path: Path
) -> Iterator[ScriptedService]:
    with scripted_service(
        tmp_path_factory.mktemp("traced"),
        model=demo_model_path,
        embedding_model=embedding_model_path,
        tracing=TracingSettings(exporter_otlp_endpoint=receiver.url, exporter_otlp_protocol=receiver.protocol),
    ) as service:
        yield service


def test_one_trace_from_the_client_to_the_engine(traced: ScriptedService, receiver: OTLPReceiver) -> None:
    tracer = TracerProvider().get_tracer("a client's own")
    with Client(traced.url) as client:
        client.create_collection("harbour")
        client.wait(client.add_document("harbour", "Boats over nine metres pay forty crowns.", id="dues"))
        traced.engine.headers.clear()
        with tracer.start_as_current_span("asking") as asking:
            client.query("harbour", "What do boats pay?")
        with tracer.start_as_current_span("asking again") as again:
            list(client.stream_query("harbour", "What do boats pay?"))
        httpx.get(f"{traced.url}/healthz")

    for own in (asking, again):
        context = own.get_span_context()
        trace_id = f"{context.trace_id:032x}"
        spans = receiver.trace(trace_id, [*STEPS, ROUTE, "POST"])
        (route,) = spans[ROUTE]
        assert route.parent == f"{context.span_id:016x}"
        assert {span.parent for name in (*STEPS, "POST") for span in spans[name]} == {route.id}
        assert {span.service for each in spans.values() for span in each} == {"kvblend"}
        # the engine goes on within the span of the call that it got, encodes behind the answer among them
        parents = {headers.get("traceparent", "")[:-3] for headers in traced.engine.headers}
        assert {f"00-{trace_id}-{span.id}" for span in spans["POST"]} <= parents
    of_probes = [span for span in receiver.spans if "healthz" in span.name or (span.name == "GET" and not span.parent)]
    assert not of_probes


def test_ids_come_from_the_caller_or_are_made(traced: ScriptedService) -> None:
    def id_of(**headers: str) -> str:
        return httpx.get(f"{traced.url}/v1/collections", headers=headers).headers["x-request-id"]

    assert id_of(**{"x-request-id": "mine-7"}) == "mine-7"
    assert re.fullmatch("[0-9a-f]{32}", id_of()) and id_of() != id_of()
    for malformed in ("a b", "x" * 129, "-", ""):
        assert re.fullmatch("[0-9a-f]{32}", id_of(**{"x-request-id": malformed}))


def test_a_trace_is_passed_on_without_opentelemetry() -> None:
    sent = {"x-request-id": "r", "traceparent": PARENT, "tracestate": "a=b"}
    with RequestContext.of(sent, None).entered():
        assert engine_headers() == sent
        assert log_fields() == {"request_id": "r", "trace_id": PARENT.split("-")[1], "span_id": PARENT.split("-")[2]}
    for malformed in (PARENT[:-1], PARENT.upper(), "nonsense", f"{PARENT}\n"):
        with RequestContext.of({**sent, "traceparent": malformed}, None).entered():
            assert engine_headers() == {"x-request-id": "r"}
    assert engine_headers() == log_fields() == {}


def test_nothing_of_opentelemetry_is_imported_where_it_is_off() -> None:
    script = "import sys, kvblend.api, kvblend.sdk; print([name for name in sys.modules if 'opentelemetry' in name])"
    ended = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=120)
    assert ended.stdout.strip() == "[]", ended.stderr


def test_without_its_packages_requests_are_not_traced_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from kvblend.api.tracing import Tracing

    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.fastapi", None)
    assert Tracing.of(TracingSettings(exporter_otlp_endpoint="http://127.0.0.1:1")) is None
    assert "pip install 'kvblend[otel]'" in caplog.text
    assert Tracing.of(TracingSettings()) is None
