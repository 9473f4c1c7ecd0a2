"""Where the kernels come from, and that a service starts without them."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvblend.host_kernels import HostKernels, host_kernels


@pytest.fixture
def compiler(kernels: HostKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Has a script for a compiler, which says its version; what it does where it is to compile is given.

    Returns a file that gets a line for each time it is called.
    """

    def make(script: str) -> Path:
        path, calls = tmp_path / "compiler", tmp_path / "calls"
        path.write_text(f'#!/bin/sh\necho "$1" >> {calls}\n[ "$1" = --version ] && exec echo 1.0\n{script}\n')
        path.chmod(0o700)
        monkeypatch.setenv("CXX", str(path))
        return calls

    host_kernels.cache_clear()
    yield make
    host_kernels.cache_clear()


def compilations(calls: Path) -> int:
    return sum("-shared" in line for line in calls.read_text().splitlines())


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_compiled_once(kernels: HostKernels, compiler: Callable[[str], Path], tmp_path: Path) -> None:
    """A process that starts later takes the file of the first, until the compiler is another."""
    calls, folder = compiler(f"cp {kernels.library._name} library.so"), tmp_path / "kernels"
    first = host_kernels(folder)
    assert first is not None and first.in_bf16 == kernels.in_bf16
    assert host_kernels(folder) is first
    (made,) = files(folder)
    host_kernels.cache_clear()
    again = host_kernels(folder)
    assert again is not None and again.library._name == str(folder / made) and compilations(calls) == 1

    script = Path(calls.parent / "compiler")
    script.write_text(script.read_text().replace("echo 1.0", "echo 1.1"))
    host_kernels.cache_clear()
    assert host_kernels(folder) is not None and compilations(calls) == 2 and len(files(folder)) == 2


def test_a_compiler_that_fails(
    kernels: HostKernels,
    compiler: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """None, with what the compiler says in the log and nothing left in the folder."""
    compiler("echo no such machine >&2; exit 1")
    with caplog.at_level(logging.WARNING):
        assert host_kernels(tmp_path / "kernels") is None
    assert "no such machine" in caplog.text and files(tmp_path / "kernels") == []
    monkeypatch.setenv("CXX", "false")
    with caplog.at_level(logging.WARNING):
        assert host_kernels(tmp_path / "others") is None
    assert caplog.text.count("do not compile, and plain PyTorch does their work") == 2


def test_a_library_that_does_not_load(
    compiler: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiler("echo not a library > library.so")
    with caplog.at_level(logging.WARNING):
        assert host_kernels(tmp_path / "kernels") is None
    assert "cannot be loaded, and plain PyTorch does their work" in caplog.text


def test_no_folder(
    kernels: HostKernels, compiler: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file in its place."""
    compiler(f"cp {kernels.library._name} library.so")
    (tmp_path / "kernels").touch()
    with caplog.at_level(logging.WARNING):
        assert host_kernels(tmp_path / "kernels") is None
    assert "cannot be loaded" in caplog.text


def test_no_compiler(
    compiler: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert host_kernels(tmp_path / "kernels") is None
    assert "no C++ compiler" in caplog.text


def test_a_torch_without_bf16_products(kernels: HostKernels) -> None:
    """oneDNN told to keep off this CPU's bf16 instructions: attention widens bf16 numbers instead of aborting."""
    script = """
import torch
from platformdirs import user_cache_path
from kvblend.host_kernels import HostPagedKV, Rows, attend, host_kernels
from kvblend.triton_kernels import AttentionSpec
kernels = host_kernels(user_cache_path("kvblend") / "kernels")
cache = torch.ones(2, 1, 32, 64, dtype=torch.bfloat16)
rows = Rows.of([torch.tensor([30])], [torch.tensor([1], dtype=torch.int32)])
pages = HostPagedKV(2048, 0, 0, 1024, 32, 1, 32, False, torch.bfloat16)
out = attend(kernels, pages, cache, AttentionSpec(0.125), torch.ones(1, 2, 32, dtype=torch.bfloat16), rows)
assert not kernels.in_bf16 and bool((out == 1).all())
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
