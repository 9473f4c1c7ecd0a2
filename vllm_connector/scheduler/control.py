"""The connector's control channel: a local socket that answers for reports and commits (core/control.py)."""

import contextlib
import fcntl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zmq
from pydantic import ValidationError
from vllm.logger import init_logger

from kvblend.core.control import ControlReply, ControlRequest, EngineInfo, Held, KVName
from kvblend.core.errors import InvalidRequestError
from kvblend.core.report import BlendReport

__all__ = ["ControlServer", "engine_address"]

logger = init_logger("vllm.kvblend.control")

KEPT_RESULTS = 8192
POLL_MS = 200
Look = Callable[[Sequence[KVName]], Future[Held]]
"""Begins to find out what is held of passages."""


def _look_at_nothing(names: Sequence[KVName]) -> Future[Held]:
    found: Future[Held] = Future()
    found.set_result(Held(passages=[False] * len(names)))
    return found


def engine_address(address: str, parallel_config: Any) -> str:
    """Where an engine core's own control channel is: those of data parallel ranks above 0 have one each.

    `ipc://.../control.sock` gives `ipc://.../control.sock.dp1`, and `tcp://host:6000` gives `tcp://host:6001`.
    """
    rank = parallel_config.data_parallel_rank
    if rank == 0:
        return address
    start, separator, port = address.rpartition(":")
    if address.startswith("tcp://") and separator and port.isdigit():
        return f"{start}:{int(port) + rank}"
    return f"{address}.dp{rank}"


@dataclass
class _Waiting:
    client: bytes
    request: ControlRequest
    until: float
    look: Future[Held] | None = None


class ControlServer:
    """Serves a ROUTER socket from a thread of its own; results are set from the engine's thread.

    The newest 8,192 results are kept; older ones are unknown again.
    """

    def __init__(self, address: str, info: EngineInfo, *, look: Look = _look_at_nothing) -> None:
        """`look` is called from that thread, and must not wait."""
        self._info, self._look = info, look
        self._lock, self._waking = threading.Lock(), threading.Lock()
        self._reports: OrderedDict[str, BlendReport] = OrderedDict()
        self._encoded: OrderedDict[str, str | None] = OrderedDict()
        self._lock_file = _lock(address)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.setsockopt(zmq.IPV6, address.startswith(("tcp://[", "tcp://*")))
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise InvalidRequestError(f"the control channel's address {address!r} cannot be bound: {error}") from error
        # results wake the thread through a pair of its own: a ZeroMQ socket belongs to one thread
        self._wake_in = self._context.socket(zmq.PAIR)
        self._wake_in.bind("inproc://wake")
        self._wake_out = self._context.socket(zmq.PAIR)
        self._wake_out.connect("inproc://wake")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="kvblend-control", daemon=True)
        self._thread.start()
        logger.info("kvblend control channel at %s", address)

    def set_report(self, report_id: str, report: BlendReport) -> None:
        self._set(self._reports, report_id, report)

    def set_encoded(self, report_id: str, failure: str | None) -> None:
        """Say that an encode order is committed (None), or why it failed."""
        self._set(self._encoded, report_id, failure)

    def close(self) -> None:
        with self._waking:
            self._stopped.set()
            self._wake_out.send(b"")
        self._thread.join(timeout=2)
        self._context.destroy(linger=0)
        if self._lock_file is not None:
            self._lock_file.close()

    def _set(self, results: OrderedDict[str, Any], report_id: str, result: Any) -> None:
        with self._lock:
            results[report_id] = result
            while len(results) > KEPT_RESULTS:
                results.popitem(last=False)
        self._wake()

    def _wake(self) -> None:
        """From any thread, one at a time."""
        with self._waking:
            if not self._stopped.is_set():
                self._wake_out.send(b"")

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_in, zmq.POLLIN)
        waiting: list[_Waiting] = []
        while not self._stopped.is_set():
            ready = dict(poller.poll(POLL_MS if waiting else None))
            if self._wake_in in ready:
                with contextlib.suppress(zmq.Again):
                    while True:
                        self._wake_in.recv(zmq.NOBLOCK)
            if self._socket in ready:
                client, *_, body = self._socket.recv_multipart()
                try:
                    request = ControlRequest.model_validate_json(body)
                except ValidationError as error:
                    self._send(client, ControlReply(id="", error=str(error)))
                    continue
                waiting.append(self._begun(client, request))
            waiting = [entry for entry in waiting if not self._answer(entry)]

    def _begun(self, client: bytes, request: ControlRequest) -> _Waiting:
        entry = _Waiting(client, request, time.monotonic() + request.wait_s)
        if request.op == "held":
            try:
                entry.look = self._look(request.names)
            except RuntimeError:  # the engine shuts down
                logger.exception("the control channel cannot say what is held")
            else:
                entry.look.add_done_callback(lambda _: self._wake())
        return entry

    def _answer(self, entry: _Waiting) -> bool:
        """Send the reply if it is known or its time is up."""
        request, reply = entry.request, ControlReply(id=entry.request.id)
        if request.op == "held":
            return self._answer_held(entry, reply)
        with self._lock:
            if request.op == "info":
                reply.info = self._info
                known = True
            elif request.op == "report":
                reply.report = self._reports.get(request.report_id or "")
                known = reply.report is not None
            else:
                known = request.report_id in self._encoded
                if known:
                    reply.error = self._encoded[request.report_id or ""]
                    reply.encoded = reply.error is None
        if not known and time.monotonic() < entry.until:
            return False
        self._send(entry.client, reply)
        return True

    def _answer_held(self, entry: _Waiting, reply: ControlReply) -> bool:
        if entry.look is None:
            reply.error = "the engine shuts down"
        elif not entry.look.done():
            return False
        elif (error := entry.look.exception()) is not None:
            reply.error = f"what is held could not be found out: {error}"
        else:
            reply.held = entry.look.result()
        self._send(entry.client, reply)
        return True

    def _send(self, client: bytes, reply: ControlReply) -> None:
        self._socket.send_multipart([client, b"", reply.model_dump_json().encode()])


def _lock(address: str) -> IO[str] | None:
    """Hold a local socket's address: ZeroMQ would take it away from another engine without a word.

    Raises InvalidRequestError where another engine holds it.
    """
    if not address.startswith("ipc://"):
        return None
    path = Path(address.removeprefix("ipc://"))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = path.with_name(path.name + ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise InvalidRequestError(
            f"the control channel's address {address!r} is another engine's: set KVBLEND_CONTROL to one of its own"
        ) from error
    return file
