"""`pip install kvblend` alone gives a command that works on a remote service."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

HEAVY = (
    "bs4", "faiss", "fastapi", "numpy", "prometheus_client", "pypdf", "sentence_transformers", "starlette",
    "tokenizers", "torch", "transformers", "uvicorn", "zmq",
)  # fmt: skip
RUN = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None  # its import fails, as where it is not installed
from kvblend.cli import main
main()
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", RUN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"})


def test_it_ingests_and_lists(lone_url: str, tmp_path: Path) -> None:
    (tmp_path / "bridge.txt").write_text("The bridge of Vik is closed in winter.")
    ended = run("ingest", tmp_path, "-c", "light", "--url", lone_url, "--api-key", "secret")
    assert ended.returncode == 0, ended.stderr
    with httpx.Client(base_url=lone_url, headers={"Authorization": "Bearer secret"}) as client:
        assert client.get("/v1/collections/light").json()["num_documents"] == 1
        client.delete("/v1/collections/light")


def test_it_says_what_a_service_says(lone_url: str) -> None:
    ended = run("query", "Why?", "-c", "none", "--url", lone_url, "--api-key", "secret")
    assert ended.returncode == 1 and "no collection 'none'" in ended.stderr
    ended = run("kv", "stats", "--url", lone_url, "--api-key", "secret")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("command", ["--help", "serve --help", "query --help", "bench --help"])
def test_it_says_what_it_takes(command: str) -> None:
    assert run(*command.split()).returncode == 0


def test_what_needs_more_names_it(tmp_path: Path) -> None:
    ended = run("serve", "demo", "--home", tmp_path, "--engine-url", "http://127.0.0.1:9")
    assert ended.returncode == 1
    assert "kvblend[serve]" in ended.stderr and "Traceback" not in ended.stderr
