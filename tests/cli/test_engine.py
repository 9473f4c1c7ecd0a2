"""What `kvblend serve` tells its vLLM."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvblend.cli import engine
from kvblend.cli.engine import engine_environment


@pytest.fixture(params=[True, False], ids=["cpu", "gpu"])
def on_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(engine, "runs_on_cpu", lambda: request.param)
    for name in ("VLLM_USE_AOT_COMPILE", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return bool(request.param)


def test_on_a_cpu_what_was_compiled_is_found_by_the_next_start(
    on_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    told = engine_environment(control="")
    assert told.get("VLLM_USE_AOT_COMPILE") == ("0" if on_cpu else None)
    assert told.get("TORCHINDUCTOR_CACHE_DIR") == (str(tmp_path / "inductor") if on_cpu else None)


@pytest.mark.parametrize("name", ["VLLM_CACHE_ROOT", "XDG_CACHE_HOME", None])
def test_it_lies_beside_what_vllm_keeps(name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setattr(engine, "runs_on_cpu", lambda: True)
    if name is not None:
        monkeypatch.setenv(name, str(tmp_path))
    environment = engine_environment(control="")
    asked = "from vllm import envs; print(envs.VLLM_CACHE_ROOT, envs.VLLM_USE_AOT_COMPILE)"
    said = subprocess.run([sys.executable, "-P", "-c", asked], env=environment, capture_output=True, text=True)
    assert said.stdout.split() == [str(Path(environment["TORCHINDUCTOR_CACHE_DIR"]).parent), "False"], said.stderr


def test_what_is_set_already_stays(on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_USE_AOT_COMPILE", "TORCHINDUCTOR_CACHE_DIR", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "mine")
    environment = engine_environment(control="")
    assert {environment[name] for name in ("VLLM_USE_AOT_COMPILE", "TORCHINDUCTOR_CACHE_DIR")} == {"mine"}
    assert environment["OMP_NUM_THREADS"] == "mine"
