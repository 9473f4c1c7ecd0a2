"""One vLLM blends what another, on another host, has encoded."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from kvblend.cli.engine import free_port

HERE = Path(__file__).parent


def test_one_vllm_blends_what_another_has_encoded(
    tiny_model_path: Callable[[str], Path], tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the blend of the engine that encoded. Ours: that of one whose store was empty."""
    if find_spec("nixl_cu12") is None:
        pytest.skip("the package nixl-cu12 is not installed: it has wheels for Linux alone")
    monkeypatch.setenv("UCX_TLS", "tcp")
    address, model = f"127.0.0.1:{free_port()}", tiny_model_path("llama3rope")

    def engine(part: str, settings: dict[str, str]) -> "subprocess.Popen[str]":
        script = [sys.executable, str(HERE / "peers_scenario.py"), part, str(model), str(tmp_path / part), dtype]
        return subprocess.Popen(
            [*script, json.dumps({**settings, "peer_token": "a token"})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    one = engine("encode", {"peer_address": address})
    encoded = results(one)
    other = engine("read", {"remote": f"nixl://{address}", "remote_deadline": "5"})
    read = results(other)
    for process in (one, other):
        process.communicate(timeout=60)
    assert encoded["report"]["outcome"] == read["report"]["outcome"] == "blended"
    assert read["report"]["missed_passages"] == 0
    assert read["report"]["reused_tokens"] == encoded["report"]["reused_tokens"] > 0
    assert set(read["report"]["tiers"]) <= {"peers", "disk"}  # a prefetch may have brought some near
    assert read["tokens"] == encoded["tokens"]


def results(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("RESULTS "):
            answer: dict[str, Any] = json.loads(line.removeprefix("RESULTS "))
            return answer
    raise AssertionError(f"it ended with status {process.wait()}")
