"""A server as a child process: its start, its restarts and its end."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

from kvblend.cli.shared_memory import LeftMemory
from kvblend.core.errors import EngineUnavailableError

__all__ = ["ServerProcess"]

STOP_GRACE_S = 20.0
MAX_BACKOFF_S = 60.0
HEALTHY_AFTER_S = 60.0
NOTE_EVERY_S = 10.0
PR_SET_PDEATHSIG = 1


class ServerProcess:
    """An HTTP server as a child process in a session of its own; it is ended with its parent, however that ends.

    `name` is what messages call it; `health_url` answers 200 once it is ready; its output goes to `log_path`. Beside
    that its shared memory is noted, so that what a killed server leaves of it is unlinked.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str], log_path: Path, health_url: str
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._health_url = health_url
        self._command = list(command)
        self._environment = dict(environment)
        self._stopping = threading.Event()
        self._supervisor: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._left_memory = LeftMemory(log_path.with_suffix(".shm"))

    @property
    def pid(self) -> int | None:
        """The running child's process id."""
        return self._child.pid if self._child and self._child.poll() is None else None

    def start(self) -> None:
        """Start the server; returns at once. Its output goes to the log file."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._left_memory.unlink()  # of a server before this one that ended together with its parent
        libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

        def die_with_parent() -> None:
            if libc is not None:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    def wait_ready(self, *, timeout_s: float = 1800.0, tick: Callable[[str], None] = lambda line: None) -> None:
        """Wait until the server answers; `tick` gets the log's newest line now and then.

        Raises EngineUnavailableError where it ends instead, with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        with httpx.Client(timeout=5.0, trust_env=False) as client:  # one: each reads all certificates
            while time.monotonic() < deadline:
                if self.pid is None:
                    raise EngineUnavailableError(
                        f"{self.name} ended at its start; its log {self.log_path} ends with:\n{self.tail()}"
                    )
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(self._health_url).status_code == 200:
                        self._note_memory()
                        return
                tick(self.tail(1))
                time.sleep(0.5)
        raise EngineUnavailableError(f"{self.name} was not ready within {timeout_s:.0f} s; its log is {self.log_path}")

    def supervise(self, notify: Callable[[str], None]) -> None:
        """Restart the server whenever it dies, at growing intervals, until `stop`; returns at once."""
        self._supervisor = threading.Thread(
            target=self._supervise, args=(notify,), name="kvblend supervisor", daemon=True
        )
        self._supervisor.start()

    def stop(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """End the server and everything it started, at the latest after `grace_s`. Idempotent; from any thread."""
        self._stopping.set()
        if self._supervisor:
            self._supervisor.join()
        if self._child is None:
            return
        if self._child.poll() is None:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(grace_s)
        self._kill_group()

    def tail(self, num_lines: int = 20) -> str:
        """The end of the log."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - 16_384))
            text = log.read().decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-num_lines:])

    def _supervise(self, notify: Callable[[str], None]) -> None:
        backoff_s, started_at = 1.0, time.monotonic()
        noted_at = started_at
        while not self._stopping.wait(0.2):
            if self.pid is not None:
                if time.monotonic() > noted_at + NOTE_EVERY_S:
                    noted_at = time.monotonic()
                    self._note_memory()
                continue
            self._kill_group()
            if time.monotonic() - started_at > HEALTHY_AFTER_S:
                backoff_s = 1.0
            notify(f"{self.name} died; starting it again in {backoff_s:.0f} s (log: {self.log_path})")
            if self._stopping.wait(backoff_s):
                return
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            started_at = time.monotonic()
            self.start()

    def _note_memory(self) -> None:
        assert self._child is not None
        self._left_memory.note(self._child.pid)

    def _kill_group(self) -> None:
        """End what is left of the child's session, such as the engine of a server that was killed."""
        assert self._child is not None
        self._note_memory()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._left_memory.unlink()
