"""The CUDA path's tests again, by the kernels in Triton's interpreter, chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_blends_by_the_kernels(dtype: str) -> None:
    # pages smaller than blocks; windows, layer-outermost heads
    run_interpreted("test_backend_blends.py", dtype, "-k", "Llama-FlashInfer or Gemma2-Triton")


def test_steps_after_warming(dtype: str) -> None:
    run_interpreted("interpreted_warm.py", dtype)


def run_interpreted(script: str, dtype: str, *options: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    command += [str(HERE / script), "--dtype", dtype, *options]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1"}
    run = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout
