"""LlamaIndex on the real service, in an environment made by `pip install 'kvblend[llamaindex]'`."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.environments import python_with
from tests.service import RunningService

CHECKS = Path(__file__).parent / "llamaindex_checks.py"


@pytest.mark.extended
def test_llamaindex(service: RunningService) -> None:
    """llama-index-core asks for a newer setuptools than vLLM for CPUs allows: they are never in one environment."""
    python, variables = python_with("llamaindex")
    command = [python, "-m", "pytest", "--noconftest", "-c", os.devnull, "--import-mode=importlib", "-q", str(CHECKS)]
    ended = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        env={**variables, "KVBLEND_URL": service.url},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
