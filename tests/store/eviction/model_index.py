"""The semantics of eviction policies, spelled out over a dict that each step searches from end to end."""

from dataclasses import dataclass, replace

from kvblend.core.errors import StoreFullError
from kvblend.store.eviction.policy import MAX_SPARED, EvictionPolicy, Ranked

__all__ = ["ModelIndex"]


@dataclass
class ModelFile:
    ranked: Ranked
    placed_at: int
    pinned: bool = False


class ModelIndex:
    """What an index is compared with. It fails where a policy breaks its own contract."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy = policy
        self.files: dict[str, ModelFile] = {}
        self.remembered: dict[str, int] = {}  # how many more evictions each is remembered for
        self.now, self.floor = 0, 0.0

    @property
    def used_bytes(self) -> int:
        return sum(file.ranked.num_bytes for file in self.files.values())

    def put(self, key: str, num_bytes: int, cost: float) -> None:
        self.files.pop(key, None)
        self.now += 1
        was_evicted = self.remembered.pop(key, 0) > 0
        place = self.policy.place(num_bytes, cost, now=self.now, floor=self.floor, was_evicted=was_evicted)
        self.files[key] = ModelFile(Ranked(num_bytes, cost, 0, place), self.now)

    def use(self, key: str) -> None:
        if key in self.files:
            self.now += 1
            file = self.files[key]
            used = replace(file.ranked, num_uses=file.ranked.num_uses + 1)
            place = self.policy.used(used, now=self.now, floor=self.floor)
            file.ranked, file.placed_at = replace(used, place=place), self.now

    def remove(self, key: str) -> None:
        self.files.pop(key, None)

    def pin(self, key: str, *, pinned: bool) -> None:
        if key in self.files:
            self.files[key].pinned = pinned

    def evict(self, num_bytes: int) -> list[str]:
        if sum(file.ranked.num_bytes for file in self.files.values() if not file.pinned) < num_bytes:
            raise StoreFullError("too much is pinned")
        victims: list[str] = []
        freed = num_looks = 0
        bound = (MAX_SPARED + 1) * len(self.files)
        while freed < num_bytes:
            num_looks += 1
            assert num_looks <= bound, f"{self.policy} looked at files more than {bound} times"
            key = self.next_candidate()
            file = self.files[key]
            self.now += 1
            spared = self.policy.spared(file.ranked, now=self.now)
            if spared is not None:
                file.ranked, file.placed_at = spared, self.now
                continue
            del self.files[key]
            victims.append(key)
            freed += file.ranked.num_bytes
            self.floor = max(self.floor, file.ranked.place.rank)
            self.remembered = {name: left - 1 for name, left in self.remembered.items()}
            if self.policy.remembers:
                self.remembered[key] = len(self.files)
        return victims

    def next_candidate(self) -> str:
        candidates = {key: file for key, file in self.files.items() if not file.pinned}
        queue_bytes = [0] * self.policy.num_queues
        for file in candidates.values():
            queue_bytes[file.ranked.place.queue] += file.ranked.num_bytes
        queue = self.policy.next_queue(queue_bytes)
        assert queue_bytes[queue] > 0, f"{self.policy} chose an empty queue of {queue_bytes}"
        in_queue = {key: file for key, file in candidates.items() if file.ranked.place.queue == queue}
        return min(in_queue, key=lambda key: (in_queue[key].ranked.place.rank, in_queue[key].placed_at))
