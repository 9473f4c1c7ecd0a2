"""How many blends the worker half has at a time."""

__all__ = ["Admission"]

MIN_ADMITTED = 2
"""One is repaired while the next one's passages come in."""


class Admission:
    """Holds back blends that the worker could not work on yet, so that they hold no blocks while they wait.

    Two are admitted whatever they cost; more while all are no more than two steps' work.
    """

    def __init__(self, tokens_per_step: int) -> None:
        self._room = 2 * tokens_per_step
        self._costs: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._costs)

    def admits(self, cost: int) -> bool:
        """Whether a blend of about `cost` tokens to put through the model may begin now."""
        return len(self._costs) < MIN_ADMITTED or sum(self._costs.values()) + cost <= self._room

    def begin(self, request_id: str, cost: int) -> None:
        self._costs[request_id] = cost

    def end(self, request_id: str) -> None:
        """The worker has nothing to do for it any more. Idempotent."""
        self._costs.pop(request_id, None)
