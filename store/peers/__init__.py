"""Peers: hosts that read passage KV out of each other's memory over NIXL."""

from kvblend.store.peers.addresses import peer_addresses
from kvblend.store.peers.host_process import HostProcess
from kvblend.store.peers.peer_tier import PeerTier

__all__ = ["HostProcess", "PeerTier", "peer_addresses"]
