"""Contexts in the engine's paged blocks: loaded, probed and repaired there by kernels, with no dense copy."""

from kvblend.blend.paged.batch import PagedBatch
from kvblend.blend.paged.caches import PagedCaches
from kvblend.blend.paged.context import PagedContextKV
from kvblend.blend.paged.load import PassageLoad, PlacedPassage
from kvblend.blend.paged.warm import warm

__all__ = ["PagedBatch", "PagedCaches", "PagedContextKV", "PassageLoad", "PlacedPassage", "warm"]
