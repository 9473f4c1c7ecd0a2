"""The peer process's end towards other hosts."""

import asyncio
import logging

from kvblend.core.errors import InvalidRequestError
from kvblend.store.peers.addresses import Address
from kvblend.store.peers.connection import serve
from kvblend.store.peers.handshake import RefusedError, greet
from kvblend.store.peers.lending import Lending

__all__ = ["PeerServer"]

log = logging.getLogger(__name__)

GREETING_S = 2.0
MAX_CONNECTIONS = 256


class PeerServer:
    """Answers those who show that they have the token."""

    def __init__(self, lending: Lending, token: str) -> None:
        self._lending, self._token = lending, token
        self._connections: dict[asyncio.StreamWriter, asyncio.Event] = {}
        self._server: asyncio.Server | None = None
        self._refused: set[str] = set()

    async def listen(self, address: Address) -> None:
        """Raises InvalidRequestError where the address cannot be listened on."""
        try:
            self._server = await asyncio.start_server(self._serve, *address)
        except OSError as error:
            raise InvalidRequestError(
                f"KVBLEND_PEER_ADDRESS {address} cannot be listened on: {error.strerror or error}",
                param="KVBLEND_PEER_ADDRESS",
            ) from error

    async def close(self) -> None:
        """End all connections, and what is being answered on them."""
        if self._server is not None:
            self._server.close()
        for writer, ended in list(self._connections.items()):
            writer.close()
            await ended.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = (writer.get_extra_info("peername") or ("?",))[0]
        if len(self._connections) >= MAX_CONNECTIONS:
            log.debug("a connection of %s is one too many", host)
            writer.close()
            return
        ended = self._connections[writer] = asyncio.Event()
        holder = object()
        try:
            async with asyncio.timeout(GREETING_S):
                await greet(reader, writer, self._token, self._lending.lent)
            await serve(reader, writer, self._lending.answer, holder)
        except RefusedError as error:
            if host not in self._refused and len(self._refused) < MAX_CONNECTIONS:
                self._refused.add(host)
                log.warning("peers at %s are refused: %s", host, error)
        except (OSError, EOFError) as error:
            log.debug("a connection of %s ends: %s", host, error)
        finally:
            self._lending.ended(holder)
            writer.close()
            del self._connections[writer]
            ended.set()
