"""Remote tiers: passage KV files as objects of a store at the other end of a network."""

from kvblend.store.remote.remote_tier import RemoteTier
from kvblend.store.remote.urls import remote_objects, remote_tiers

__all__ = ["RemoteTier", "remote_objects", "remote_tiers"]
