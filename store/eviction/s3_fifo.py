"""First in first out, in three queues: a small one on probation, the main one, and the names of what was evicted."""

from dataclasses import dataclass, replace

from kvblend.store.eviction.policy import MAX_SPARED, EvictionPolicy, Place, Ranked

__all__ = ["S3FIFO"]

SMALL, MAIN = 0, 1


@dataclass(frozen=True)
class S3FIFO(EvictionPolicy):
    """Lets most new files pass through a small queue, and keeps in the main one what was used meanwhile, or came back.

    Based on Yang et al., "FIFO queues are all you need for cache eviction" (SOSP 2023), with queues measured in bytes.
    A file goes from the small queue to the main one if it was used `promoting_uses` times there; at the end of the main
    one it starts over, for one of the uses it had, of which at most `max_uses` count.
    """

    name = "s3-fifo"
    num_queues = 2
    remembers = True

    small_ratio: float = 0.1
    promoting_uses: int = 2
    max_uses: int = 3

    def __post_init__(self) -> None:
        assert 0 < self.small_ratio < 1 and self.promoting_uses > 0 and 0 < self.max_uses < MAX_SPARED

    def place(self, num_bytes: int, cost: float, *, now: int, floor: float, was_evicted: bool) -> Place:
        return Place(MAIN if was_evicted else SMALL, now)

    def used(self, file: Ranked, *, now: int, floor: float) -> Place:
        return file.place

    def next_queue(self, queue_bytes: list[int]) -> int:
        return SMALL if queue_bytes[SMALL] > self.small_ratio * sum(queue_bytes) else MAIN

    def spared(self, file: Ranked, *, now: int) -> Ranked | None:
        if file.place.queue == SMALL:
            return replace(file, place=Place(MAIN, now), num_uses=0) if file.num_uses >= self.promoting_uses else None
        uses = min(file.num_uses, self.max_uses)
        return replace(file, place=Place(MAIN, now), num_uses=uses - 1) if uses > 0 else None
