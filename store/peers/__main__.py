"""A host's peer process: it reads what its peers lend, and lends what the host's folders have.

    python -m kvblend.store.peers LOCK_FD < SETTINGS

NIXL and UCX, whose ports authenticate nobody and whose errors may end a process, run here and not in an engine.
`host_process.py` starts it; it ends with the last process of the host that is connected to it. It says in one line
whether it is ready, or why it ends.
"""

import asyncio
import json
import logging
import os
import sys
from contextlib import AsyncExitStack

from kvblend.core.errors import KVBlendError
from kvblend.core.settings import Settings
from kvblend.store.folder.folder_tier import FolderTier
from kvblend.store.peers.addresses import listen_address, peer_addresses
from kvblend.store.peers.host_folder import host_folder, host_names
from kvblend.store.peers.lending import Lending
from kvblend.store.peers.local_server import LocalServer
from kvblend.store.peers.nixl_memory import preload
from kvblend.store.peers.peer import Peer
from kvblend.store.peers.peer_server import PeerServer
from kvblend.store.peers.peers import Peers
from kvblend.store.peers.ring import Ring
from kvblend.store.peers.served_files import ServedFiles
from kvblend.store.placement import tiers_of

RING_BYTES = 256 << 20
"""The most that is lent at a time, and the most that is read."""
KEEP_S = 10.0
"""How long a process of the host may take to copy what was fetched for it."""


async def run(settings: Settings) -> None:
    """Until no process of the host is connected any more."""
    token = settings.peer_token.get_secret_value() if settings.peer_token else ""
    preload()
    names = host_names(settings)
    ring = Ring(RING_BYTES, lease_s=KEEP_S)
    peers = Peers([Peer(address, token, ring, own_hosts=names) for address in peer_addresses(settings)], ring)
    async with AsyncExitStack() as closing:
        closing.callback(peers.close)
        if (address := listen_address(settings)) is not None:
            tiers = [tier for tier in tiers_of(settings) if isinstance(tier, FolderTier)]
            files = ServedFiles(tiers, max_bytes=RING_BYTES)
            closing.callback(files.close)
            lending = Lending(files, ring_bytes=RING_BYTES, hosts=names)
            server = PeerServer(lending, token)
            await server.listen(address)
            closing.push_async_callback(server.close)
            driving = asyncio.create_task(lending.drive())
            closing.callback(driving.cancel)
        warming = asyncio.create_task(peers.warm_up())
        closing.callback(warming.cancel)
        local_server = LocalServer(host_folder(settings), peers)
        say("ready")
        await local_server.run()


def say(text: str) -> None:
    """To whoever started this, who may be gone."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123


def main() -> None:
    lock = int(sys.argv[1])
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s kvblend peers: %(message)s")
    settings = Settings(**json.load(sys.stdin))
    try:
        asyncio.run(run(settings))
    except (KVBlendError, OSError) as error:
        say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
