"""The benchmarks run on real vLLM and print what they promise."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvblend.eval.bench.verification import TOLERANCES

pytestmark = pytest.mark.extended


def run_bench(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "kvblend.cli", "bench", *arguments, "--json"]
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "0"}  # as a user's vLLM runs
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    assert {"machine", "versions", "results"} <= set(result)
    return result


@pytest.mark.timed
def test_ttft(demo_model_path: Path, dtype: str) -> None:
    """Every mode has its row; what is timed was verified; a blend's ratios are made of what stands beside them."""
    options = ("--context-tokens", "1000", "--repeats", "1", "--dtype", dtype)
    result = run_bench("ttft", str(demo_model_path), *options)
    verified = result["verified"]
    assert verified["recompute_ratio"] == 1.0 and result["machine"]["dtype"] == dtype
    assert verified["kl"] <= verified["tolerance"] == TOLERANCES[dtype]
    rows = {(row["mode"], row["recompute_ratio"]): row for row in result["results"]}
    blends = [("blend", ratio) for ratio in (0.05, 0.15, 0.3)]
    assert list(rows) == [("full_prefill", None), ("prefix_cache", None), ("full_reuse", 0.0), *blends]
    assert len({frozenset(row) for row in rows.values()}) == 1 and "kl" not in rows["blend", 0.15]
    full = rows["full_prefill", None]
    for key, row in rows.items():
        assert row["ttft_ms_p20"] <= row["ttft_ms_p50"] <= row["ttft_ms_p80"]
        assert (row["steps_ms"] is not None) == (key[1] is not None)
        assert (row["load_efficiency"] is not None) == (key[1] is not None)
        assert (row["repair_efficiency"] is not None) == (row["probe_efficiency"] is not None) == (key in blends)
    for key in blends:
        row, steps = rows[key], rows[key]["steps_ms"]
        assert list(steps) == ["load", "probe", "repair", "question"]
        assert sum(steps.values()) == pytest.approx(row["ttft_ms_p50"])
        assert row["reused_tokens"] == 1000 and row["recomputed_tokens"] == round(1000 * key[1])
        assert row["question_forward_ms"] < steps["question"], "the engine's forward is a part of what is left"
        repair_token_ms = steps["repair"] / row["recomputed_tokens"]
        prefill_token_ms = full["ttft_ms_p50"] / full["prompt_tokens"]
        assert row["repair_efficiency"] == pytest.approx(repair_token_ms / prefill_token_ms)
        assert row["load_efficiency"] == pytest.approx(steps["load"] / row["memcpy_ms"])
        assert row["probe_efficiency"] == pytest.approx(steps["probe"] / row["question_forward_ms"])
    assert rows["blend", 0.05]["ttft_ms_p50"] < full["ttft_ms_p50"]


@pytest.mark.parametrize("name", ["ingest", "itl"])
def test_rates(name: str, demo_model_path: Path, dtype: str) -> None:
    """Ours beside vLLM's own, and their ratio."""
    small = {
        "ingest": ("--num-documents", "2", "--num-passages", "4", "--passage-tokens", "64"),
        "itl": ("--pairs", "1", "--context-tokens", "500"),
    }
    (row,) = run_bench(name, str(demo_model_path), "--dtype", dtype, *small[name])["results"]
    assert row["ratio"] > 0
    if name == "ingest":
        assert row["apart_ratio"] > 0 and row["document_tokens"] == 256


def test_kl(demo_model_path: Path, tmp_path: Path) -> None:
    """At ratio 1 nothing diverges but by the dtype's rounding; with nothing recomputed more does."""
    text = "The lighthouse keeper wrote down the weather every evening and sent the book to the harbour once a month. "
    contexts = [{"text": text.replace("weather", word) * 4} for word in ("wind", "tide", "rain")]
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps([{"question": "What did the keeper write down?", "ctxs": contexts}] * 2))
    options = ("--num-questions", "1", "--num-passages", "2", "--passage-tokens", "80", "--ratio", "0", "--ratio", "1")
    result = run_bench("kl", str(questions), str(demo_model_path), *options)
    none, every = result["results"]
    assert every["kl"] < TOLERANCES[result["machine"]["dtype"]] < none["kl"]
    assert every["agreement"] >= none["agreement"] and every["num_questions"] == 1


@pytest.mark.timed
def test_replay(demo_model_path: Path, tmp_path: Path, dtype: str) -> None:
    """Two passages that every request brings together: reused as their documents have them they diverge, and by their
    variants, which are exact, hardly; nothing is recomputed of either."""
    (tmp_path / "docs").mkdir()
    for name, word in (("lamp.txt", "lamp"), ("clock.md", "clock")):
        lines = (
            f"In year {year} the {word} of Vik was mended by {year * 7 % 90} men of the guild." for year in range(160)
        )
        (tmp_path / "docs" / name).write_text(" ".join(lines))
    with gzip.open(tmp_path / "two_trace.jsonl.gz", "wt") as trace:
        trace.write(json.dumps({"passages": [2, 14]}) + "\n")
        trace.write((json.dumps({"passages": [9, 3]}) + "\n") * 120)
    with gzip.open(tmp_path / "two_passage_tokens.json.gz", "wt") as counts:
        json.dump([200] * 15, counts)
    options = ("--trace", str(tmp_path / "two_trace.jsonl.gz"), "--corpus", str(tmp_path / "docs"), "--sample", "1")
    settings = ("--capacity", "2", "--order", "rank", "--share", "0", "--share", "1", "--ratio", "0", "--dtype", dtype)
    result = run_bench("replay", "--model", str(demo_model_path), *options, *settings)
    steady = [row for row in result["results"] if row["steady"]]
    assert steady[0]["reused"] == 1.0 and steady[1]["exact"] > 0.8
    assert (result["trace"], result["corpus"]) == ("two_trace.jsonl.gz", "docs")
    reused, exact = result["sample"]
    assert (reused["num_requests"], reused["num_prefilled"]) == (1, 0)
    assert exact["kl"] < reused["kl"] / 4
    assert exact["ttft_ms"] < exact["full_ttft_ms"]
