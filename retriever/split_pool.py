"""Processes that parse and split documents, so that one document's cost is bounded and nobody else's."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from array import array
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import BoundedSemaphore, Lock

from kvblend.core.errors import InvalidRequestError, KVBlendError, UnsupportedDocumentError
from kvblend.retriever.packing import PassageText
from kvblend.retriever.split_worker import OUT_OF_MEMORY, TOKEN_TYPE
from kvblend.retriever.tokenizer import PassageTokenizer

__all__ = ["SplitLimits", "SplitPool"]

MIB = 1 << 20
SECONDS_PER_MIB = 5.0
WALL_SECONDS = 10.0
"""For one of CPU, on a machine that is busy with other things."""
MAX_WORKERS = 4
START_WORKER = "from kvblend.retriever.split_worker import main; main()"


@dataclass(frozen=True)
class SplitLimits:
    """CPU seconds that a document may take, beside 5 for each of its MiB, and bytes of memory."""

    seconds: float = 30.0
    memory_bytes: int = 2 << 30

    def seconds_for(self, num_bytes: int) -> float:
        return self.seconds + SECONDS_PER_MIB * num_bytes / MIB


class SplitPool:
    """Worker processes, started when there is work and kept; one that has ended is replaced.

    Thread-safe: as many documents are split at a time as there are workers.
    """

    def __init__(self, tokenizer: PassageTokenizer, limits: SplitLimits, *, num_workers: int | None = None) -> None:
        self.num_workers = num_workers or max(2, min(MAX_WORKERS, (os.cpu_count() or 1) // 2))
        self._tokenizer, self._limits = tokenizer, limits
        self._slots = BoundedSemaphore(self.num_workers)
        self._lock = Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._closed = False

    def split(self, data: bytes, media_type: str, name: str, passage_tokens: int) -> list[PassageText]:
        """What `split_document` does, in a worker; blocks until it is done.

        Raises what that raises, and InvalidRequestError where the document takes more time or memory than it may.
        """
        with self._slots:
            worker = self._take()
            try:
                passages = worker.split(data, media_type, name, passage_tokens)
            except _WorkerIsLostError as error:
                self._end(worker)
                raise error.reason from error
            except KVBlendError:
                self._give(worker)
                raise
            except BaseException:
                self._end(worker)
                raise
            self._give(worker)
            return passages

    def close(self) -> None:
        """End all workers; what they were splitting fails."""
        with self._lock:
            self._closed = True
            workers = list(self._all)
        for worker in workers:
            worker.kill()

    def _take(self) -> "_Worker":
        while (worker := self._take_idle()) is not None:
            if worker.is_alive():
                return worker
            self._end(worker)  # killed while it was idle, for want of memory elsewhere: no document's fault
        worker = _Worker(self._tokenizer, self._limits)  # which takes as long as its process to start
        with self._lock:
            self._all.add(worker)
            closed = self._closed
        if closed:
            self._end(worker)
            raise KVBlendError("the service is stopping")
        return worker

    def _take_idle(self) -> "_Worker | None":
        with self._lock:
            if self._closed:
                raise KVBlendError("the service is stopping")
            return self._idle.pop() if self._idle else None

    def _give(self, worker: "_Worker") -> None:
        with self._lock:
            self._idle.append(worker)

    def _end(self, worker: "_Worker") -> None:
        with self._lock:
            self._all.discard(worker)
        worker.end()


class _WorkerIsLostError(Exception):
    """A worker that is of no more use, and what to say of its document."""

    def __init__(self, reason: KVBlendError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class _Worker:
    """One process; of one thread at a time, but for `kill`."""

    def __init__(self, tokenizer: PassageTokenizer, limits: SplitLimits) -> None:
        self._limits = limits
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", START_WORKER, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is the service's to answer
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
            )
        self._connection = Connection(ours.detach())
        with contextlib.suppress(OSError):  # it has ended already: its first document will say so
            self._connection.send_bytes(tokenizer.definition.encode())
            self._connection.send_bytes(str(limits.memory_bytes).encode())

    def split(self, data: bytes, media_type: str, name: str, passage_tokens: int) -> list[PassageText]:
        seconds = self._limits.seconds_for(len(data))
        order = {"media_type": media_type, "name": name, "passage_tokens": passage_tokens, "seconds": seconds}
        try:
            self._connection.send_bytes(json.dumps(order).encode())
            self._connection.send_bytes(data)
            if not self._connection.poll(WALL_SECONDS * seconds):
                raise _WorkerIsLostError(_too_long(name, seconds))
            header = json.loads(self._connection.recv_bytes())
            token_ids = array(TOKEN_TYPE, self._connection.recv_bytes())
        except (OSError, EOFError) as error:
            raise _WorkerIsLostError(self._cause(name, seconds)) from error
        if "memory" in header:
            raise _WorkerIsLostError(self._too_much(name))
        if "unsupported" in header:
            raise UnsupportedDocumentError(header["unsupported"], param=header["param"])
        if "invalid" in header:
            raise InvalidRequestError(header["invalid"], param=header["param"])
        if "failed" in header:
            raise KVBlendError(f"document {name!r} could not be parsed; the service's log says how")
        ends, start = [], 0
        for count in header["counts"]:
            ends.append((start, start + count))
            start += count
        return [
            PassageText(text, tuple(token_ids[begin:end]))
            for text, (begin, end) in zip(header["texts"], ends, strict=True)
        ]

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill the process, whatever it does; a thread that waits for its answer learns so."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Kill the process and forget it; by the thread that it works for."""
        self.kill()
        self._connection.close()

    def _cause(self, name: str, seconds: float) -> KVBlendError:
        """Why the process has ended."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = 0
        if code == -signal.SIGXCPU:
            return _too_long(name, seconds)
        # the last three are how native code runs out of memory
        if code in (OUT_OF_MEMORY, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):
            return self._too_much(name)
        return KVBlendError(f"document {name!r} could not be parsed: its parser ended with status {code}")

    def _too_much(self, name: str) -> InvalidRequestError:
        bound = self._limits.memory_bytes
        return InvalidRequestError(f"document {name!r} takes more than {bound} bytes of memory to parse and split")


def _too_long(name: str, seconds: float) -> InvalidRequestError:
    return InvalidRequestError(f"document {name!r} takes more than {seconds:.0f} s to parse and split")
