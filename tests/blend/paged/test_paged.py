"""Paged contexts are dense ones in blocks, and whole blends are right: by the kernels' references, and by the kernels in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("interpret", ["0", "1"], ids=["references", "kernels"])
def test_paged(interpret: str) -> None:
    scripts = [str(HERE / "interpreted_paged.py"), str(HERE.parent / "benchmark" / "test_blend_results.py")]
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", *scripts]
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONSAFEPATH": "1"}
    run = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout
