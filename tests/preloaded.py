"""Scripts that run vLLM, each in a process of its own that need not import it: forked from one that has.

Importing vLLM takes a core ten seconds or more, and the tests start it dozens of times.
"""

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from signal import SIGKILL

__all__ = ["run_script"]

CHILD = "preloaded child"
"""This file's name in a forked process, which finds it by its path: `tests` is no package there."""
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "transformers.models.auto.modeling_auto",
        "vllm.entrypoints.llm",
        "vllm.v1.engine.core",
        "vllm.v1.executor.multiproc_executor",
        "vllm.v1.worker.cpu_worker",
        "vllm.model_executor.models.llama",
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
        task = {"task": (command, dict(os.environ), out, err)}
        process = CONTEXT.Process(target=runpy.run_path, args=(__file__, task, CHILD))
        process.start()
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


def _run(command: list[str], environment: Mapping[str, str], out: Path, err: Path) -> None:
    os.setsid()
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a forked process leaves them out


if __name__ == CHILD:
    _run(*globals()["task"])
