"""Each step of a blend is a span in the trace of vLLM's request, received as a collector would."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.otlp_receiver import OTLPReceiver
from tests.preloaded import run_script

SCRIPT = Path(__file__).with_name("traced_scenario.py")
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STEPS = ("kvblend.load", "kvblend.probe", "kvblend.repair")


def test_steps_are_spans_and_lines_have_ids(
    tiny_model_path: Callable[[str], Path], tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = OTLPReceiver()
    with receiver.running():
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{receiver.url}/v1/traces")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "vllm")
        model, parent = tiny_model_path("llama3rope"), f"00-{TRACE}-{CALLER}-01"
        done = run_script(SCRIPT, model, tmp_path / "store", dtype, parent, timeout_s=400)
        told = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
        assert told, done.stderr[-4000:]
        spans = receiver.trace(TRACE, ["llm_request", "kvblend.blend", "kvblend.fetch", *STEPS])
    results = json.loads(told[0].removeprefix("RESULTS "))
    report = results["report"]

    (blend,) = spans["kvblend.blend"]
    assert {span.parent for span in spans["llm_request"]} == {blend.parent} == {CALLER}
    assert blend.attributes["kvblend.outcome"] == report["outcome"] == "blended"
    for count in ("reused_tokens", "selected_tokens", "recomputed_tokens", "exact_tokens"):
        assert blend.attributes[f"kvblend.{count}"] == report[count]
    assert blend.attributes["kvblend.tier.disk.tokens"] == report["tiers"]["disk"]
    load, probe, repair = [span for name in STEPS for span in spans[name]]
    assert {load.parent, probe.parent, repair.parent} == {blend.id}
    times = [(span.began_ns, span.ended_ns) for span in (load, probe, repair)]
    moments = [blend.began_ns, *(moment for step in times for moment in step), blend.ended_ns]
    assert moments == sorted(moments)
    for step, spent_ms in zip((load, probe, repair), report["steps_ms"].values(), strict=True):
        assert step.attributes["kvblend.spent_ms"] == pytest.approx(spent_ms)
    (fetch,) = spans["kvblend.fetch"]
    assert fetch.parent == load.id and fetch.attributes["kvblend.tier"] == "disk"
    assert fetch.attributes["kvblend.hits"] == fetch.attributes["kvblend.keys"] > 0

    (line,) = results["lines"]
    assert line["request_id"].startswith("malformed") and line["trace_id"] == TRACE
