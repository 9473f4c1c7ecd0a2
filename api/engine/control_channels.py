"""The control channels of all engines behind one URL: a router chooses among them, and one of them has the report."""

import asyncio
import logging
import re
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

from kvblend.api.background import end_task
from kvblend.api.engine.control import ControlClient
from kvblend.core.control import ControlReply, EngineInfo, Held, KVName, channel_addresses
from kvblend.core.report import BlendReport

__all__ = ["ControlChannels"]

logger = logging.getLogger(__name__)

RESOLVE_EVERY_S = 10.0
_HOST_AND_PORT = re.compile(r"tcp://(?P<host>[^\[\]/]+):(?P<port>[0-9]+)")
Found = TypeVar("Found")


class ControlChannels:
    """Channels at ZeroMQ addresses, asked together. A host's name stands for each of the addresses that it has:
    those of IPv4, or of IPv6 where it has no others.

    Names are looked up again after a while, beside the requests: engines come and go. Create and use it inside one
    running event loop.
    """

    def __init__(self, address: str) -> None:
        """`address`: one, or several with commas between them."""
        self.address = address
        self._resolved = {each: {each} for each in channel_addresses(address)}
        """By address as given, those that it stands for."""
        self._clients: dict[str, ControlClient] = {}
        self._next_at = 0.0
        self._resolving: asyncio.Task[None] | None = None

    async def close(self) -> None:
        await end_task(self._resolving)
        for client in self._clients.values():
            await client.close()

    async def info(self) -> EngineInfo | None:
        """What the engines are, by the first that answers; None where none does."""
        return await self._first(ControlClient.info, lambda info: info is not None)

    async def report(self, report_id: str, *, wait_s: float = 0.0) -> BlendReport | None:
        """As `ControlClient.report`, of whichever engine has it."""
        return await self._first(
            lambda client: client.report(report_id, wait_s=wait_s), lambda report: report is not None
        )

    async def encoded(self, report_id: str, *, wait_s: float = 0.0) -> ControlReply | None:
        """As `ControlClient.encoded`, of whichever engine had the order."""
        return await self._first(
            lambda client: client.encoded(report_id, wait_s=wait_s),
            lambda reply: reply is not None and reply.encoded is not None,
        )

    async def held(self, names: Sequence[KVName], *, timeout_s: float) -> Held | None:
        """As `ControlClient.held`, of all engines together: what any of them has, and what they all work on."""
        clients = await self._current()
        told = [
            held
            for held in await asyncio.gather(*(client.held(names, timeout_s=timeout_s) for client in clients))
            if held is not None
        ]
        if not told:
            return None
        passages = [any(each) for each in zip(*(held.passages for held in told), strict=True)]
        return Held(passages=passages, num_requests=sum(held.num_requests for held in told))

    async def _first(
        self, ask: Callable[[ControlClient], Coroutine[None, None, Found | None]], tells: Callable[[Found | None], bool]
    ) -> Found | None:
        """The first answer that `tells` something; else any that is not None."""
        asked = [asyncio.create_task(ask(client)) for client in await self._current()]
        answer: Found | None = None
        try:
            for ended in asyncio.as_completed(asked):
                found = await ended
                if tells(found):
                    return found
                answer = found if found is not None else answer
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return answer

    async def _current(self) -> list[ControlClient]:
        """A client for each address that is known; only the first caller waits for names to be looked up."""
        is_resolving = self._resolving is not None and not self._resolving.done()
        if not is_resolving and time.monotonic() >= self._next_at:
            self._resolving = asyncio.create_task(self._resolve(), name="kvblend control channels")
        if not self._clients and self._resolving is not None:
            await asyncio.shield(self._resolving)
        return list(self._clients.values())

    async def _resolve(self) -> None:
        resolved = await asyncio.gather(*map(_resolved, self._resolved))
        for address, found in zip(self._resolved, resolved, strict=True):
            self._resolved[address] = found or self._resolved[address]
        wanted = {each for addresses in self._resolved.values() for each in addresses}
        for address in self._clients.keys() - wanted:
            await self._clients.pop(address).close()
        for address in wanted - self._clients.keys():
            self._clients[address] = ControlClient(address)
        self._next_at = time.monotonic() + RESOLVE_EVERY_S


async def _resolved(address: str) -> set[str]:
    """The address once for each IP address of its host; none where that is not known now, or where there is no host."""
    match = _HOST_AND_PORT.fullmatch(address)
    if match is None:
        return set()
    try:
        found = await asyncio.get_running_loop().getaddrinfo(match["host"], int(match["port"]), type=socket.SOCK_STREAM)
    except OSError as error:
        logger.warning("the control channel's host %s is not found: %s", match["host"], error)
        return set()
    by_family: dict[int, set[str]] = {}
    for family, *_, name in found:
        by_family.setdefault(family, set()).add(str(name[0]))
    ipv6 = {f"tcp://[{each}]:{match['port']}" for each in by_family.get(socket.AF_INET6, ())}
    return {f"tcp://{each}:{match['port']}" for each in by_family.get(socket.AF_INET, ())} or ipv6
