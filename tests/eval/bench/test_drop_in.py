"""What `kvblend bench drop-in` says of a small catalog, and of prompts that cannot hold what they are to hold."""

import json
import math
import subprocess
import sys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvblend.cli", "bench", "drop-in", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_small_catalog() -> None:
    """All but a few tokens of the passages are found, and of random tokens none."""
    options = ["--passages", "300", "--prompt-tokens", "2048", "--held", "4", "--held", "0", "--repeats", "5"]
    ended = run(*options, "--json")
    assert ended.returncode == 0, ended.stderr
    holding, free = json.loads(ended.stdout)["results"]
    assert holding["found_share"] >= 0.95 and free["found_share"] is None
    for row in (holding, free):
        assert (row["num_passages"], row["prompt_tokens"]) == (300, 2048)
        times = [row[name] for name in ("cpu_ms_min", "cpu_ms_p50", "cpu_ms_p95", "ms_p50", "index_cpu_s", "index_mib")]
        assert all(math.isfinite(each) and each > 0 for each in times) and row["cpu_ms_p50"] <= row["cpu_ms_p95"]
    assert free["cpu_ms_min"] < holding["cpu_ms_min"]


def test_more_than_a_prompt_holds() -> None:
    ended = run("--passages", "300", "--prompt-tokens", "2048", "--held", "5")
    assert ended.returncode == 1 and "2048 tokens hold at most 4 of 300 passages" in ended.stderr
