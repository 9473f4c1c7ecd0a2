"""Ask the connector over its control channel: what the engine is, a request's report, an encode's end."""

import asyncio
import logging
import uuid
from collections.abc import Sequence
from typing import Literal

import zmq
import zmq.asyncio
from pydantic import ValidationError

from kvblend.api.background import end_task
from kvblend.core.control import MAX_HELD_NAMES, ControlReply, ControlRequest, EngineInfo, Held, KVName
from kvblend.core.report import BlendReport

__all__ = ["ControlClient"]

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 2.0


class ControlClient:
    """A client of the channel at a ZeroMQ address. Silence is None: the channel may come, go and come back.

    Create and use it inside one running event loop.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._waiting: dict[str, asyncio.Future[ControlReply]] = {}
        self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, "[" in address)
        self._socket.connect(address)
        self._reader = asyncio.create_task(self._read(), name="kvblend control")

    async def close(self) -> None:
        await end_task(self._reader)
        self._socket.close(linger=0)

    async def info(self) -> EngineInfo | None:
        """What the engine is; None where no channel answers."""
        reply = await self._ask(ControlRequest(id=uuid.uuid4().hex, op="info"), timeout_s=ANSWER_TIMEOUT_S)
        return reply.info if reply else None

    async def report(self, report_id: str, *, wait_s: float = 0.0) -> BlendReport | None:
        """The blend report of a request, waiting up to `wait_s` for it; None where it is not known."""
        reply = await self._result("report", report_id, wait_s)
        return reply.report if reply else None

    async def encoded(self, report_id: str, *, wait_s: float = 0.0) -> ControlReply | None:
        """How an encode order ended, in the reply's `encoded` and `error`; None where no channel answers."""
        return await self._result("encoded", report_id, wait_s)

    async def held(self, names: Sequence[KVName], *, timeout_s: float) -> Held | None:
        """What the engine has near of passages, by encode context and passage id, and how busy it is; None where it
        does not say so in time, and of more than 4,096 names."""
        if len(names) > MAX_HELD_NAMES:
            return None
        reply = await self._ask(ControlRequest(id=uuid.uuid4().hex, op="held", names=names), timeout_s=timeout_s)
        return reply.held if reply else None

    async def _result(self, op: Literal["report", "encoded"], report_id: str, wait_s: float) -> ControlReply | None:
        request = ControlRequest(id=uuid.uuid4().hex, op=op, report_id=report_id, wait_s=wait_s)
        return await self._ask(request, timeout_s=ANSWER_TIMEOUT_S + wait_s)

    async def _ask(self, request: ControlRequest, *, timeout_s: float) -> ControlReply | None:
        future: asyncio.Future[ControlReply] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        try:
            async with asyncio.timeout(timeout_s):
                await self._socket.send(request.model_dump_json().encode())
                reply = await future
        except TimeoutError:
            return None
        finally:
            del self._waiting[request.id]
        if reply.error and reply.encoded is None:
            logger.warning("the control channel at %s refused %s: %s", self.address, request.op, reply.error)
        return reply

    async def _read(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            try:
                reply = ControlReply.model_validate_json(frames[-1])
            except ValidationError as error:
                logger.warning("the control channel at %s sent what is no reply: %s", self.address, error)
                continue
            future = self._waiting.get(reply.id)
            if future and not future.done():
                future.set_result(reply)
