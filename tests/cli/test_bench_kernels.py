"""`bench kernels` runs where there is no GPU, and claims no floor there."""

import json
import subprocess
import sys


def test_bench_kernels() -> None:
    command = [sys.executable, "-m", "kvblend.cli", "bench", "kernels", "--json"]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    names = {row["kernel"] for row in result["results"]}
    expected = {"gather_quantize", "kv_deviation", "load_rerotate", "probe_scores", "selective_attention"}
    assert expected <= names
    if result["device"] == "cpu":
        assert {row["floor_ms"] for row in result["results"]} == {None}
        assert {row["max_error"] for row in result["results"]} == {0.0}
    keys = {"model_shape", "context_tokens", "recompute_ratio", "tier", "full_ms_p50", "blend_ms_p50"}
    assert result["blend"] and all(set(row) == keys for row in result["blend"])
    assert {row["tier"] for row in result["blend"]} == {"gpu", "pinned bf16", "pinned int8"}
