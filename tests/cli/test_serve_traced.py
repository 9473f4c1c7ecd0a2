"""`kvblend serve` with a receiver of spans, by gRPC: one trace through vLLM and each step of a blend, a log in JSON."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider

from kvblend.cli.engine import free_port
from kvblend.cli.server_process import ServerProcess
from kvblend.sdk import Client
from tests.otlp_receiver import OTLPReceiver
from tests.service import RunningService

pytestmark = pytest.mark.extended

START_TIMEOUT_S = 400.0
STEPS = ("kvblend.load", "kvblend.probe", "kvblend.repair")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Traced:
    service: RunningService
    receiver: OTLPReceiver

    def lines(self, log: str) -> list[dict[str, str]]:
        """The objects of a log; what others than loggers write to vLLM's is none."""
        (path,) = (self.service.home / "logs").glob(log)
        lines = path.read_text().splitlines()
        return [json.loads(line) for line in lines if log == "serve.log" or line.startswith("{")]


@pytest.fixture(scope="module")
def traced(
    tiny_model_path: Callable[[str], Path],
    embedding_model_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
) -> Iterator[Traced]:
    home, receiver, port = tmp_path_factory.mktemp("home"), OTLPReceiver("grpc"), free_port()
    cpu_path = Path(tempfile.mkdtemp(prefix="kvblend-test-"))
    command = [sys.executable, "-P", "-m", "kvblend.cli", "serve", str(tiny_model_path("llama3rope"))]
    command += ["--port", str(port), "--home", str(home), "--embedding-model", str(embedding_model_path)]
    command += ["--dtype", dtype, "--max-model-len", "2048", "--", "--max-num-seqs", "4", "--enforce-eager"]
    url = f"http://127.0.0.1:{port}"
    with receiver.running():
        environment = {
            **os.environ,
            "KVBLEND_CPU_PATH": str(cpu_path),
            "KVBLEND_CPU_BYTES": str(1 << 28),
            "KVBLEND_COST_MODEL": "0",
            "KVBLEND_LOG_FORMAT": "json",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": receiver.protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        process = ServerProcess(
            "kvblend serve",
            command,
            environment=environment,
            log_path=home / "logs" / "serve.log",
            health_url=f"{url}/readyz",
        )
        try:
            process.start()
            process.wait_ready(timeout_s=START_TIMEOUT_S)
            yield Traced(RunningService(url=url, home=home, cpu_path=cpu_path, process=process), receiver)
        finally:
            process.stop()
            shutil.rmtree(cpu_path, ignore_errors=True)


def test_one_trace_through_vllm_and_each_step_of_a_blend(traced: Traced) -> None:
    tracer = TracerProvider().get_tracer("a client's own")
    text = " ".join(f"Boat {number} pays {number * 7} crowns at the harbour of Marstrand." for number in range(40))
    with Client(traced.service.url) as client:
        client.create_collection("harbour", passage_tokens=64)
        assert client.wait(client.add_document("harbour", text, id="dues")).status == "succeeded"
        with tracer.start_as_current_span("asking") as asking:
            report = client.query("harbour", "What does boat 7 pay?", top_k=4, max_tokens=4).report
    assert report.outcome == "blended" and report.reused_tokens > 0, report

    trace_id = f"{asking.get_span_context().trace_id:032x}"
    wanted = ("kvblend.retrieve", "kvblend.plan", "llm_request", "kvblend.blend", *STEPS, "kvblend.fetch")
    spans = traced.receiver.trace(trace_id, wanted)
    (blend,) = spans["kvblend.blend"]
    (answered,) = [span for span in spans["llm_request"] if span.parent == blend.parent]
    assert answered.service == blend.service == "vllm"
    assert blend.parent in {span.id for span in spans["POST"]} and {span.service for span in spans["POST"]} == {
        "kvblend"
    }
    assert blend.attributes["kvblend.outcome"] == "blended"
    assert blend.attributes["kvblend.reused_tokens"] == report.reused_tokens
    load, probe, repair = [span for name in STEPS for span in spans[name]]
    assert {load.parent, probe.parent, repair.parent} == {blend.id}
    assert blend.began_ns <= load.began_ns <= load.ended_ns <= probe.began_ns <= probe.ended_ns
    assert probe.ended_ns <= repair.began_ns <= repair.ended_ns <= blend.ended_ns <= answered.ended_ns
    for step, spent_ms in zip((load, probe, repair), report.steps_ms.model_dump().values(), strict=True):
        assert step.attributes["kvblend.spent_ms"] == pytest.approx(spent_ms)
    assert {span.parent for span in spans["kvblend.fetch"]} == {load.id}
    fetched = {span.attributes["kvblend.tier"]: span.attributes["kvblend.hits"] for span in spans["kvblend.fetch"]}
    assert fetched["cpu"] > 0

    of_request = [line for line in traced.lines("serve.log") if line.get("trace_id") == trace_id]
    assert any(line.get("path") == "/v1/collections/harbour/query" for line in of_request)
    assert len({line["request_id"] for line in of_request}) == 1


def test_the_connectors_lines_name_request_and_trace(traced: Traced) -> None:
    body = {"prompt": [5, 6, 7], "max_tokens": 1, "kv_transfer_params": {"kvblend": {"version": 2}}}
    headers = {"x-request-id": "mine-7", "traceparent": PARENT}
    answer = httpx.post(f"{traced.service.engine_url}/v1/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    (line,) = [line for line in traced.lines("vllm-*.log") if "is prefilled" in line["message"]]
    assert "mine-7" in line["request_id"] and line["trace_id"] == PARENT.split("-")[1]
