"""The two servers that are measured, one at a time: kvblend with its documents stored, and vLLM alone."""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console

from kvblend.cli.demo_service import demo_server
from kvblend.cli.engine import default_dtype, engine_command, engine_environment, free_port
from kvblend.cli.models import fetch_embedding_model, resolve_model
from kvblend.cli.server_process import ServerProcess
from kvblend.sdk import Client

__all__ = ["MAX_MODEL_LEN", "kvblend_service", "outcomes", "plain_vllm"]

MAX_MODEL_LEN = 4096
OUTCOME = re.compile(r'^kvblend_answers_total\{[^}]*outcome="(\w+)"[^}]*\} ([0-9.e+]+)$', re.MULTILINE)


@contextmanager
def kvblend_service(model: str, documents: Sequence[str]) -> Iterator[str]:
    """`kvblend serve`, with the KV of the documents in its store."""
    console = Console(stderr=True)
    with demo_server(resolve_model(model), fetch_embedding_model(), None, MAX_MODEL_LEN, console) as url:
        with Client(url) as client:
            client.create_collection("peers")
            jobs = [client.add_document("peers", text, id=f"{number}") for number, text in enumerate(documents)]
            for job in jobs:
                client.wait(job)
        yield url


@contextmanager
def plain_vllm(model: str) -> Iterator[str]:
    """vLLM without the connector, as `kvblend serve` would start it else."""
    port, url = free_port(), ""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(
            "vLLM",
            engine_command(
                resolve_model(model), port=port, dtype=default_dtype(), max_model_len=MAX_MODEL_LEN, blends=False
            ),
            environment={**os.environ, **engine_environment(control="")},
            log_path=Path(folder) / "vllm.log",
            health_url=f"http://127.0.0.1:{port}/health",
        )
        try:
            server.start()
            server.wait_ready()
            url = f"http://127.0.0.1:{port}"
            yield url
        finally:
            server.stop()


def outcomes(url: str) -> Counter[str]:
    """How many answers a service has given by outcome; none of a vLLM server."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    return Counter({outcome: int(float(count)) for outcome, count in OUTCOME.findall(text)})
