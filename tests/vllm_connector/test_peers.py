"""One vLLM blends what another, on another host, has encoded."""

import json
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from kvblend.cli.engine import free_port
from tests.preloaded import start

HERE = Path(__file__).parent


def test_one_vllm_blends_what_another_has_encoded(
    tiny_model_path: Callable[[str], Path], tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the blend of the engine that encoded. Ours: that of one whose store was empty."""
    if find_spec("nixl_cu12") is None:
        pytest.skip("the package nixl-cu12 is not installed: it has wheels for Linux alone")
    monkeypatch.setenv("UCX_TLS", "tcp")
    address, model = f"127.0.0.1:{free_port()}", tiny_model_path("llama3rope")

    def engine(part: str, **settings: str) -> Engine:
        return Engine(tmp_path / part, part, model, dtype, {**settings, "peer_token": "a token"})

    one = engine("encode", peer_address=address)
    encoded = one.results()
    other = engine("read", remote=f"nixl://{address}", remote_deadline="5")
    read = other.results()
    for each in (one, other):
        each.end()
    assert encoded["report"]["outcome"] == read["report"]["outcome"] == "blended"
    assert read["report"]["missed_passages"] == 0
    assert read["report"]["reused_tokens"] == encoded["report"]["reused_tokens"] > 0
    assert set(read["report"]["tiers"]) <= {"peers", "disk"}  # a prefetch may have brought some near
    assert read["tokens"] == encoded["tokens"]


class Engine:
    """A vLLM of its own store, which runs until it is told to end."""

    def __init__(self, folder: Path, part: str, model: Path, dtype: str, settings: dict[str, str]) -> None:
        folder.mkdir()
        self._said, self._ending = folder.with_suffix(".out"), folder.with_suffix(".end")
        script = [HERE / "peers_scenario.py", part, model, folder, dtype, self._ending, json.dumps(settings)]
        errors = folder.with_suffix(".err")
        self._process = start(list(map(str, script)), os.environ, out=self._said, err=errors)

    def results(self) -> dict[str, Any]:
        """What it has answered, once it has."""
        while True:
            is_over = self._process.exitcode is not None
            for line in self._said.read_text().splitlines(keepends=True) if self._said.exists() else []:
                if line.startswith("RESULTS ") and line.endswith("\n"):
                    answer: dict[str, Any] = json.loads(line.removeprefix("RESULTS "))
                    return answer
            assert not is_over, f"it ended with status {self._process.exitcode}"
            time.sleep(0.1)

    def end(self) -> None:
        self._ending.touch()
        self._process.join(60)
        assert self._process.exitcode == 0
