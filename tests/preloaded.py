"""Scripts and servers that run vLLM, in processes that need not import it: forked from one that has.

Importing vLLM takes a core ten seconds or more, and the tests start it dozens of times. vLLM itself does so again in
the processes that it starts, of its engine and of each rank, and once for each architecture that a machine has not run
yet: it looks at the model's class in a process of its own, unless the class is registered.
"""

import atexit
import importlib
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx

__all__ = ["run_script", "start", "wait_ready"]

CHILD = "preloaded child"
"""This file's name in a forked process, which finds it by its path: `tests` is no package there."""
MODELS = {
    "LlamaForCausalLM": "vllm.model_executor.models.llama",
    "Gemma3ForCausalLM": "vllm.model_executor.models.gemma3",
    "Qwen3MoeForCausalLM": "vllm.model_executor.models.qwen3_moe",
    "BloomForCausalLM": "vllm.model_executor.models.bloom",
    "DeepseekV2ForCausalLM": "vllm.model_executor.models.deepseek_v2",
    "GPT2LMHeadModel": "vllm.model_executor.models.gpt2",
    "MambaForCausalLM": "vllm.model_executor.models.mamba",
}
"""The architectures that `make test` runs so, and the modules that hold them."""
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "transformers.models.auto.modeling_auto",
        "vllm.entrypoints.llm",
        "vllm.entrypoints.openai.api_server",
        "vllm.v1.engine.core",
        "vllm.v1.executor.multiproc_executor",
        "vllm.v1.worker.cpu_worker",
        "kvblend.store.peers.local_server",
        "kvblend.store.placement",
        *MODELS.values(),
    ]
)


def run_script(script: Path, *arguments: object, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """What the script wrote and how it ended, run with this process's environment as it is now.

    Only what is read when a library is loaded, such as `OMP_NUM_THREADS` or `LD_PRELOAD`, is as it was when the first
    script was run. Raises subprocess.TimeoutExpired after `timeout_s`, when the script and its children are ended.
    """
    command = [str(script), *map(str, arguments)]
    with tempfile.TemporaryDirectory(prefix="kvblend-script-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start(command, os.environ, out=out, err=err)
        process.join(timeout_s)
        late = process.exitcode is None
        if process.pid is not None and late:
            os.killpg(process.pid, SIGKILL)
            process.join()
        said = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
    if late:
        raise subprocess.TimeoutExpired(command, timeout_s, *said)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(command, process.exitcode, *said)


def start(command: Sequence[str], environment: Mapping[str, str], *, out: Path, err: Path) -> BaseProcess:
    """Start a script by its path, or a module by its name, with its arguments; what it says is appended to the files.

    It leads a group of processes, of which all are that it starts.
    """
    process = _forked(0, (out, err), environment, list(command))
    process.start()
    return process


def wait_ready(process: BaseProcess, url: str, *, log_path: Path, timeout_s: float) -> None:
    """Until a server answers 200. Raises AssertionError, with the end of its log, where it does not."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.exitcode is None:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5.0, trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    raise AssertionError(f"{url} does not answer:\n{log_path.read_text()[-4000:]}")


def _forked(
    group: int, outputs: tuple[Path, Path], environment: Mapping[str, str], work: Any, **own: Any
) -> BaseProcess:
    """A process in a group, 0 for one of its own: of a command, or of a function and its arguments."""
    task = {"task": (group, outputs, dict(environment), work)}
    return CONTEXT.Process(target=runpy.run_path, args=(__file__, task, CHILD), **own)


def _enter(group: int, outputs: tuple[Path, Path], environment: Mapping[str, str], work: Any) -> None:
    from torch._dynamo import config as compiling

    os.setpgid(0, group)
    for number, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    compiling.disable = environment.get("TORCH_COMPILE_DISABLE") == "1"  # else as it was when torch was imported
    _register_models()
    _fork_what_is_spawned(os.getpgid(0), outputs)
    try:
        if isinstance(work, list):
            _run(work)
        else:
            target, args, kwargs = work
            target(*args, **kwargs)
    finally:
        atexit._run_exitfuncs()  # a forked process leaves them out


def _run(command: list[str]) -> None:
    sys.argv = command
    if command[0].endswith(".py"):
        runpy.run_path(command[0], run_name="__main__")
    else:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def _register_models() -> None:
    from vllm import ModelRegistry

    for name, module in MODELS.items():
        ModelRegistry.register_model(name, getattr(importlib.import_module(module), name))


def _fork_what_is_spawned(group: int, outputs: tuple[Path, Path]) -> None:
    """Let vLLM's own processes be forked from the same server, with this one's environment, output and group."""
    vars(forkserver._forkserver)["ensure_running"] = lambda: None  # it is; a forked process would start another

    def process(*, target: Any, args: Any = (), kwargs: Any = None, **own: Any) -> BaseProcess:
        return _forked(group, outputs, os.environ, (target, args, kwargs or {}), **own)

    vars(get_context("spawn"))["Process"] = process


if __name__ == CHILD:
    _enter(*globals()["task"])
