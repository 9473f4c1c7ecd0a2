"""The same tests, and a whole blend, by the kernels in Triton's interpreter, chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_interpreted() -> None:
    tests = [
        str(HERE / "test_paged.py"),
        str(HERE / "interpreted_no_waiting.py"),
        str(HERE / "interpreted_warm.py"),
        f"{HERE.parent / 'benchmark' / 'test_blend_results.py'}::test_rows",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1"}
    run = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout
