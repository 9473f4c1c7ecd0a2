"""The CUDA path's tests again, by the kernels in Triton's interpreter, chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_interpreted(dtype: str) -> None:
    """Blends by the kernels, and steps after warming: in one process, since importing vLLM takes as long as either.

    What a blend costs is counted of tokens' fates, whoever computes them: that is left to the references.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    command += [str(HERE / "test_backend_blends.py"), str(HERE / "interpreted_warm.py"), "--dtype", dtype]
    cases = "Llama-FlashInfer or Gemma2-Triton"  # pages smaller than blocks; windows, layer-outermost heads
    command += ["-k", f"({cases}) and not counted_flops"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1"}
    run = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout
