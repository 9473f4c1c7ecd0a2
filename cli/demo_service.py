"""The demo's service, a child of this process, and its corpus in it: for the demo and for what is measured on it."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from kvblend.cli.progress import count_progress, status_progress
from kvblend.core.rest import IngestJob
from kvblend.eval.corpus import MODULES, module_document
from kvblend.sdk import Client

__all__ = ["COLLECTION", "QUESTIONS", "demo_server", "demo_service", "ingest_corpus"]

COLLECTION = "python-library"
QUESTIONS = (
    "What does textwrap.dedent do?",
    "How do I write a Python object to a file as JSON?",
    "What does shutil.copytree do with symbolic links?",
    "How do I get the median of a list of numbers?",
    "What is the difference between heapq.heappushpop and heapq.heapreplace?",
    "How do I choose a random element of a sequence?",
)


@contextmanager
def demo_service(
    model: str, embedding_model: Path, home: Path | None, max_model_len: int, console: Console
) -> Iterator[Client]:
    """A service of its own, in temporary folders, ended with the block."""
    with demo_server(model, embedding_model, home, max_model_len, console) as url, Client(url) as client:
        yield client


@contextmanager
def demo_server(
    model: str,
    embedding_model: Path,
    home: Path | None,
    max_model_len: int,
    console: Console,
    *,
    variables: Mapping[str, str] | None = None,
    dtype: str | None = None,
) -> Iterator[str]:
    """The same by its URL; `variables` are settings of the service as environment variables, `dtype` vLLM's."""
    from kvblend.cli.engine import free_port
    from kvblend.cli.server_process import ServerProcess
    from kvblend.core.settings import Settings

    with ExitStack() as stack:
        cpu_parent = Settings().cpu_path.parent
        cpu_path = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="kvblend-demo-", dir=cpu_parent if cpu_parent.is_dir() else None)
        )
        folder = home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvblend-demo-")))
        port = free_port()
        command = [sys.executable, "-P", "-m", "kvblend.cli", "serve", model, "--port", str(port)]
        command += ["--home", str(folder.absolute()), "--embedding-model", str(embedding_model)]
        command += ["--max-model-len", str(max_model_len), *(["--dtype", dtype] if dtype else [])]
        server = ServerProcess(
            "kvblend serve",
            command,
            environment={**_environment(cpu_path), **(variables or {})},
            log_path=folder / "logs" / "serve.log",
            health_url=f"http://127.0.0.1:{port}/readyz",
        )
        stack.callback(server.stop)
        server.start()
        with status_progress(console) as progress:
            progress.add_task("kvblend serve: starting vLLM and the service in front of it")
            server.wait_ready()
        yield f"http://127.0.0.1:{port}"


def _environment(cpu_path: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("KVBLEND_")}
    return {**own, "KVBLEND_CPU_PATH": cpu_path, "PYTHONSAFEPATH": "1"}


def ingest_corpus(client: Client, console: Console) -> None:
    """Ingest one document for each module, with a bar that counts passages."""
    if COLLECTION not in {collection.name for collection in client.list_collections()}:
        client.create_collection(COLLECTION)
    jobs: list[IngestJob] = []
    with count_progress(console) as progress:
        sending = progress.add_task("documents", total=len(MODULES))
        for name in MODULES:
            text = module_document(name)
            jobs.append(client.add_document(COLLECTION, text, id=name, media_type="text/markdown"))
            progress.advance(sending)
        encoding = progress.add_task("passages")
        states = {job.id: job for job in jobs}

        def show(state: IngestJob) -> None:
            states[state.id] = state
            done = sum(job.passages_done for job in states.values())
            progress.update(encoding, completed=done, total=sum(job.passages_total for job in states.values()))

        jobs = [client.wait(job, progress=show) for job in jobs]
    num_passages = client.get_collection(COLLECTION).num_passages
    num_tokens, seconds = sum(job.tokens_encoded for job in jobs), max(job.seconds for job in jobs)
    console.print(
        f"{len(jobs)} documents of Python's library are {num_passages} passages; the KV of {num_tokens} tokens was "
        f"computed and stored in {seconds:.0f} s"
    )
