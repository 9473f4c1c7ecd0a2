"""A slow disk costs the blend that reads it, and nobody else."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
READ_S = 0.2


def test_the_engine_does_not_wait_for_it(
    tiny_model_path: Callable[[str], Path], tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every open, stat and read takes 200 ms: no step waits for that in our code, and decodes go on meanwhile."""
    shim = tmp_path / "slow_disk.so"
    compiler = shutil.which("cc") or "c++"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", shim, HERE / "slow_disk.c", "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    script = str(HERE / "slow_disk_scenario.py")
    command = [sys.executable, script, str(tiny_model_path("llama3rope")), str(tmp_path / "store"), dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stderr[-4000:]
    results = json.loads(lines[0].removeprefix("RESULTS "))
    assert all(report["outcome"] == "blended" and report["missed_passages"] == 0 for report in results["blends"])
    assert min(results["waited"]) > 3 * READ_S, "the negative control: the disk is slow"
    assert results["decoded"] > 50
    assert results["waits"] == 0, "the engine's thread waited for the disk"
    assert min(results["stays"]) < READ_S / 2, "nor for a thread that does; busy cores may hold up some"
