"""A host's peer process, forked from one that has imported torch: hosts are started by the hundred here."""

import os
import runpy
import sys
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import IO

__all__ = ["ForkedProcess"]

CHILD = "forked peer process"
"""This file's name in a forked process, which finds it by its path: `tests` is no package there."""


class ForkedProcess:
    """What `HostProcess` uses of `subprocess.Popen`, to start `python -m MODULE LOCK_FD` with pipes."""

    def __init__(
        self, command: Sequence[str], *, pass_fds: Collection[int], env: Mapping[str, str], **_: object
    ) -> None:
        from tests.preloaded import CONTEXT

        (lock,) = pass_fds
        own_in, stdin = os.pipe()
        stdout, own_out = os.pipe()
        self.stdin: IO[str] = os.fdopen(stdin, "w")
        self.stdout: IO[str] = os.fdopen(stdout)
        passed = [Connection(fd) for fd in (own_in, own_out, os.dup(2), os.dup(lock))]  # a descriptor that can be sent
        task = {"task": (command[-2], dict(env), passed)}
        self._process = CONTEXT.Process(target=runpy.run_path, args=(__file__, task, CHILD))
        self._process.start()
        for each in passed:
            each.close()

    def wait(self) -> None:
        self._process.join()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode


def _enter(module: str, environment: Mapping[str, str], passed: "Sequence[Connection[bytes, bytes]]") -> None:
    os.setsid()
    for standard, each in enumerate(passed[:-1]):
        os.dup2(each.fileno(), standard)
        each.close()
    lock = passed[-1].fileno()
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, str(lock)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == CHILD:
    _enter(*globals()["task"])
