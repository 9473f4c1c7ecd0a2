"""Encodes whose files the workers are still writing."""

from dataclasses import dataclass

__all__ = ["PendingEncodes"]


@dataclass
class _Pending:
    report_id: str | None
    num_ranks: int
    failure: str | None = None


class PendingEncodes:
    """Counts the ranks' outcomes, which may come after a request has ended: a passage is whole when every rank's is."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._pending: dict[str, _Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def begin(self, request_id: str, report_id: str | None) -> None:
        """The step that is scheduled now completes this passage."""
        self._pending[request_id] = _Pending(report_id, self._num_ranks)

    def count(self, request_id: str, outcomes: tuple[str | None, ...]) -> tuple[str, str | None] | None:
        """Take up outcomes of some ranks. Returns (report id, failure) when they are the last and someone asked."""
        pending = self._pending[request_id]
        pending.num_ranks -= len(outcomes)
        pending.failure = next(filter(None, (pending.failure, *outcomes)), None)
        if pending.num_ranks > 0:
            return None
        del self._pending[request_id]
        return None if pending.report_id is None else (pending.report_id, pending.failure)
