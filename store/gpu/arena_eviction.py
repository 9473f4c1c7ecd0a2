"""Which passage KV an arena gives up to make room for another, whose layers must lie side by side."""

from collections.abc import Iterable

from kvblend.store.gpu.arena_passage import Resident
from kvblend.store.gpu.extent_allocator import ExtentAllocator

__all__ = ["choose_victims"]


def choose_victims(ranges: ExtentAllocator, candidates: Iterable[Resident], num_bytes: int) -> list[Resident] | None:
    """Choose from `candidates`, the first to go first, until a hole of `num_bytes` is there; None if none will be.

    Of those chosen on the way, what borders on another hole than the one that fits makes no difference and stays.
    """
    trial, chosen = ranges.without(()), []
    for resident in candidates:
        trial.free(resident.start)
        chosen.append(resident)
        if trial.fits(num_bytes):
            break
    else:
        return None
    for resident in reversed(chosen[:-1]):
        others = [other for other in chosen if other is not resident]
        if ranges.without(other.start for other in others).fits(num_bytes):
            chosen = others
    return chosen
