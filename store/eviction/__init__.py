"""Eviction: policies that rank files, and an index in memory that applies one."""

from typing import get_args

from kvblend.core.settings import EvictionName
from kvblend.store.eviction.cost_aware import CostAware
from kvblend.store.eviction.lru import LRU
from kvblend.store.eviction.memory_index import MemoryIndex
from kvblend.store.eviction.policy import EvictionPolicy, Place, Ranked
from kvblend.store.eviction.s3_fifo import S3FIFO

__all__ = [
    "LRU",
    "POLICY_NAMES",
    "S3FIFO",
    "CostAware",
    "EvictionPolicy",
    "MemoryIndex",
    "Place",
    "Ranked",
    "policy_of",
]

POLICY_NAMES: tuple[EvictionName, ...] = get_args(EvictionName)


def policy_of(name: EvictionName) -> EvictionPolicy:
    """The policy of that name, as the settings spell it."""
    policies: dict[EvictionName, EvictionPolicy] = {"lru": LRU(), "s3-fifo": S3FIFO(), "cost-aware": CostAware()}
    return policies[name]
