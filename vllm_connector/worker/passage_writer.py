"""Writes passage KV to the store from a thread of its own, so that no engine step waits for a disk."""

import queue
import threading
from dataclasses import dataclass

from vllm.logger import init_logger

from kvblend.store import PassageKVKey, TieredStore
from kvblend.vllm_connector.worker.host_copy import HostCopy

__all__ = ["PassageWriter"]

logger = init_logger("vllm.kvblend.writer")

MAX_WAITING_BYTES = 4 << 30
"""Host memory of passages that wait to be written. Who ingests waits for commits, so a fair client never meets it."""


@dataclass(frozen=True)
class _Waiting:
    request_id: str
    key: PassageKVKey
    kv: HostCopy
    capture_position: int
    owners: tuple[str, ...]


class PassageWriter:
    """A queue of passages, bounded in bytes, and the thread that empties it."""

    def __init__(self, store: TieredStore, *, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self._store, self._max_bytes = store, max_waiting_bytes
        self._lock = threading.Condition()
        self._waiting_bytes = 0
        self._results: list[tuple[str, str | None]] = []
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kvblend-writer", daemon=True)
        self._thread.start()

    def put(
        self, request_id: str, key: PassageKVKey, kv: HostCopy, *, capture_position: int, owners: tuple[str, ...] = ()
    ) -> None:
        """Write `kv` soon; `take_results` says when the file is whole. Never waits: over the bound, it fails."""
        with self._lock:
            full = self._waiting_bytes > 0 and self._waiting_bytes + kv.num_bytes > self._max_bytes
            if not full:
                self._waiting_bytes += kv.num_bytes
        if full:
            self._fail(
                request_id,
                f"{self._waiting_bytes} bytes of passage KV wait to be written, and {kv.num_bytes} more are over the "
                f"bound of {self._max_bytes}",
            )
            return
        self._queue.put(_Waiting(request_id, key, kv, capture_position, owners))

    def _fail(self, request_id: str, reason: str) -> None:
        logger.warning("Passage KV of request %s was not stored: %s", request_id, reason)
        with self._lock:
            self._results.append((request_id, reason))
            self._lock.notify_all()

    def rest(self, timeout_s: float) -> None:
        """Leave the interpreter to what is being written, until some of it has ended: a codec's many short calls each
        wait for it where the engine's thread goes round in steps that run nothing."""
        with self._lock:
            if self._waiting_bytes and not self._results:
                self._lock.wait(timeout_s)

    def take_results(self) -> list[tuple[str, str | None]]:
        """What has ended since the last call, each `put` once: its request id, and None for a whole file or why there
        is none."""
        with self._lock:
            results, self._results = self._results, []
        return results

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (waiting := self._queue.get()) is not None:
            try:
                self._store.put(
                    waiting.key,
                    waiting.kv.wait(),
                    capture_position=waiting.capture_position,
                    owners=waiting.owners,
                )
            except Exception as error:  # the thread's edge: one passage's failure is not the next one's
                self._fail(waiting.request_id, str(error))
            else:
                with self._lock:
                    self._results.append((waiting.request_id, None))
                    self._lock.notify_all()
            with self._lock:
                self._waiting_bytes -= waiting.kv.num_bytes
