"""`kvblend serve` in front of vLLM servers that run already."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from kvblend.cli.app import app
from kvblend.cli.engine import free_port
from kvblend.core.errors import InvalidRequestError
from tests.api.scripted_engine import ScriptedEngine


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine-url", "http://a", "--engine-url", "http://b"], "2 --engine-url and 1 --control: give one for each"),
        (["--engine-url", "http://a", "--control", "ipc:///a", "--control", "ipc:///b"], "1 --engine-url and 2"),
        (["--engine-url", "http://a", "--engine-url", "http://b", *["--control", "ipc:///a"] * 2], "ipc:///a is given"),
        ([*["--engine-url", "http://a"] * 2, "--control", "ipc:///a", "--control", "ipc:///b"], "http://a is given tw"),
        (["--engine-url", "http://router", "--control", "ipc:///a,ipc:///b,ipc:///a"], "ipc:///a is given twice"),
        (["--engine-url", "http://router", "--control", "ipc:///a,,ipc:///b"], "an address of --control .* is empty"),
    ],
)  # fmt: skip
def test_each_vllm_server_has_a_control_channel_of_its_own(options: list[str], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        CliRunner().invoke(app, ["serve", "demo", *options], catch_exceptions=False)


def test_a_running_server_has_its_port_already() -> None:
    with pytest.raises(InvalidRequestError, match="already runs takes no arguments"):
        options = ["serve", "demo", "--engine-url", "http://a", "--engine-port", "8001"]
        CliRunner().invoke(app, options, catch_exceptions=False)


def test_it_says_where_it_serves_once_it_listens(
    tmp_path: Path, demo_model_path: Path, embedding_model_path: Path
) -> None:
    """With --json one object on standard output, and nothing else."""
    port, engine = free_port(), ScriptedEngine(max_model_len=4096)
    command = [sys.executable, "-P", "-m", "kvblend.cli", "serve", str(demo_model_path), "--port", str(port), "--json"]
    command += ["--home", str(tmp_path), "--embedding-model", str(embedding_model_path)]
    with engine.running(), (tmp_path / "log").open("wb") as log:
        command += ["--engine-url", engine.url, "--control", f"ipc://{tmp_path}/none.sock"]
        environment = {**os.environ, "KVBLEND_CPU_BYTES": "0"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            assert process.stdout is not None
            try:
                told = json.loads(process.stdout.readline())
                assert told == {"url": f"http://127.0.0.1:{port}", "model": str(demo_model_path), "home": str(tmp_path)}
                assert httpx.get(f"{told['url']}/healthz").status_code == 200
            finally:
                process.terminate()
            assert process.stdout.read() == "" and process.wait(60) == 0
