"""Who holds what, as far as is known."""

import time
from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

__all__ = ["Directory"]

Holder = TypeVar("Holder", bound=Hashable)

LIFE_S = 30.0
MAX_NAMES = 1 << 16


class Directory(Generic[Holder]):
    """Files' names and who has said, not long ago, that they are there: where to fetch them without asking again.

    It is never an answer to whether there is a file: those who hold it are asked that, since it may be deleted. It is
    bounded: the oldest answers go first.
    """

    def __init__(self, *, life_s: float = LIFE_S, max_names: int = MAX_NAMES) -> None:
        self._life_s, self._max_names = life_s, max_names
        self._holders: dict[str, dict[Holder, float]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def learn(self, holder: Holder, *, asked: Collection[str], found: Collection[str]) -> None:
        """What `holder` answered: it has `found`, and not the others of `asked`."""
        now, there = time.monotonic(), set(found)
        for name in asked:
            if name in there:
                holders = self._holders.pop(name, {})  # the newest answer comes last
                holders[holder] = now
                self._holders[name] = holders
            else:
                self.forget(holder, name)
        while len(self._holders) > self._max_names:
            del self._holders[next(iter(self._holders))]

    def forget(self, holder: Holder, name: str) -> None:
        """`holder` was asked for it, and has it no more."""
        holders = self._holders.get(name)
        if holders is not None:
            holders.pop(holder, None)
            if not holders:
                del self._holders[name]

    def holders(self, name: str) -> list[Holder]:
        """Those whose answer is young enough, the latest to answer last."""
        oldest = time.monotonic() - self._life_s
        return [holder for holder, at in self._holders.get(name, {}).items() if at >= oldest]
