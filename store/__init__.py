"""Passage KV on tiers: one immutable, content-addressed file format and the places where such files lie."""

from kvblend.store.folder.cpu_tier import CPUTier
from kvblend.store.folder.disk_tier import DiskTier
from kvblend.store.folder.passage_file import PassageKVFile
from kvblend.store.format import PassageKVHeader
from kvblend.store.gpu.gpu_tier import GPUTier
from kvblend.store.gpu.stager import Stager
from kvblend.store.key import PassageKVKey
from kvblend.store.open_passage import OpenPassageKV
from kvblend.store.tier import Tier, VerifyReport
from kvblend.store.tiered import TieredStore

__all__ = [
    "CPUTier",
    "DiskTier",
    "GPUTier",
    "OpenPassageKV",
    "PassageKVFile",
    "PassageKVHeader",
    "PassageKVKey",
    "Stager",
    "Tier",
    "TieredStore",
    "VerifyReport",
]
