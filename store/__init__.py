"""Passage KV on tiers: one immutable, content-addressed file format and the places where such files lie."""

from kvblend.store.deadline import NEVER, Deadline
from kvblend.store.folder.cpu_tier import CPUTier
from kvblend.store.folder.disk_tier import DiskTier
from kvblend.store.folder.passage_file import PassageKVFile
from kvblend.store.folder.read_ahead import ReadAhead
from kvblend.store.format import PassageKVHeader
from kvblend.store.gpu.gpu_tier import GPUTier
from kvblend.store.gpu.stager import Stager
from kvblend.store.key import PassageKVKey, Variant
from kvblend.store.open_passage import OpenPassageKV
from kvblend.store.stored_passage import StoredPassageKV
from kvblend.store.tier import BoundedTier, Tier, VerifyReport
from kvblend.store.tiered import TieredStore

__all__ = [
    "NEVER",
    "BoundedTier",
    "CPUTier",
    "Deadline",
    "DiskTier",
    "GPUTier",
    "OpenPassageKV",
    "PassageKVFile",
    "PassageKVHeader",
    "PassageKVKey",
    "ReadAhead",
    "Stager",
    "StoredPassageKV",
    "Tier",
    "TieredStore",
    "Variant",
    "VerifyReport",
]
