"""What a start says before anything is served: nothing that is not of kvblend."""

import subprocess
import sys

import pytest

CODE = """
from kvblend.cli.log_format import configure_logging
configure_logging({log_format!r})
import kvblend.cli.run_service, kvblend.cli.models, kvblend.retriever, faiss, huggingface_hub
import logging
logging.getLogger("kvblend").info("begins")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_other_packages_are_quiet(log_format: str) -> None:
    command = [sys.executable, "-c", CODE.format(log_format=log_format)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.endswith('"begins"}') if log_format == "json" else line.endswith("INFO kvblend: begins")
