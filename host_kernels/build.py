"""The kernels' shared library: compiled once a machine and torch, by the machine's own C++ compiler."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import torch
from torch.utils import cpp_extension

from kvblend.host_kernels.structures import declare

__all__ = ["HostKernels", "host_kernels"]

log = logging.getLogger(__name__)

FLAGS = (
    "-std=c++20", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fno-math-errno",
    "-fno-trapping-math", "-ffinite-math-only", "-fno-signed-zeros", "-fPIC", "-DNDEBUG",
)  # fmt: skip
"""For compiling alone: OpenMP's library is not linked, so that its functions are found in the one that torch computes
with, whose threads and bindings are the engine's."""


@dataclass(frozen=True)
class HostKernels:
    """The kernels, ready to be called. `in_bf16`: this CPU multiplies bf16 numbers; elsewhere they are widened."""

    library: ctypes.CDLL
    in_bf16: bool


@cache
def host_kernels(folder: Path) -> HostKernels | None:
    """The kernels, from `folder` or compiled into it, which takes seconds.

    None where they cannot be had; a warning says why.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return None  # vLLM keeps pages in other orders there
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        log.warning("no C++ compiler: plain PyTorch and vLLM's attention do what kvblend's own kernels do sooner")
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler, folder)))
    except subprocess.CalledProcessError as error:
        log.warning("kvblend's host kernels do not compile, and plain PyTorch does their work:\n%s", error.stderr)
        return None
    except OSError as error:
        log.warning("kvblend's host kernels cannot be loaded, and plain PyTorch does their work: %s", error)
        return None
    declare(library)
    return HostKernels(library, bool(library.kvblend_has_bf16_products()))


def _compiled(compiler: str, folder: Path) -> Path:
    """The library's path; compiled where it is not there yet."""
    sources = resources.files("kvblend.host_kernels") / "csrc"
    texts = {entry.name: entry.read_text() for entry in sources.iterdir() if entry.name.endswith((".cpp", ".h"))}
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    known = repr((sorted(texts.items()), FLAGS, compiler, version, torch.__version__, _cpu()))
    target = folder / f"host_kernels-{hashlib.sha256(known.encode()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        for name, text in texts.items():
            (Path(made) / name).write_text(text)
        names = sorted(name for name in texts if name.endswith(".cpp"))
        includes = [f"-I{path}" for path in cpp_extension.include_paths()]
        _run([compiler, *FLAGS, *includes, "-c", *names], made)
        link = [compiler, "-shared", *(str(Path(name).with_suffix(".o")) for name in names), "-o", "library.so"]
        for path in cpp_extension.library_paths():
            link += [f"-L{path}", f"-Wl,-rpath,{path}"]
        _run([*link, "-ltorch_cpu", "-lc10"], made)
        (Path(made) / "library.so").replace(target)  # whole or not at all, whoever else compiles it now
    return target


def _run(command: list[str], folder: str) -> None:
    subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)


def _cpu() -> str:
    """What the compiler's `native` stands for, as far as the kernel tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
