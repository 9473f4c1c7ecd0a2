"""A host's peer process, forked from one that has imported torch: hosts are started by the hundred here."""

import os
import runpy
import sys
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.reduction import DupFd
from typing import IO, Any

from tests.preloaded import CONTEXT

__all__ = ["ForkedProcess"]

CHILD = "forked peer process"
"""This file's name in a forked process, which finds it by its path: `tests` is no package there."""


class ForkedProcess:
    """What `HostProcess` uses of `subprocess.Popen`, to start `python -m MODULE LOCK_FD` with pipes."""

    def __init__(
        self, command: Sequence[str], *, pass_fds: Collection[int], env: Mapping[str, str], **_: object
    ) -> None:
        (lock,) = pass_fds
        own_in, stdin = os.pipe()
        stdout, own_out = os.pipe()
        self.stdin: IO[str] = os.fdopen(stdin, "w")
        self.stdout: IO[str] = os.fdopen(stdout)
        task = {"task": (command[-2], dict(env), [DupFd(fd) for fd in (own_in, own_out, lock)])}
        self._process = CONTEXT.Process(target=runpy.run_path, args=(__file__, task, CHILD))
        self._process.start()
        for fd in (own_in, own_out):
            os.close(fd)

    def wait(self) -> None:
        self._process.join()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode


def _enter(module: str, environment: Mapping[str, str], fds: Sequence[Any]) -> None:
    os.setsid()
    stdin, stdout, lock = (fd.detach() for fd in fds)
    for fd, standard in ((stdin, 0), (stdout, 1)):
        os.dup2(fd, standard)
        os.close(fd)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, str(lock)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == CHILD:
    _enter(*globals()["task"])
