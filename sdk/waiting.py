"""The rhythm in which an ingest job is asked for."""

import time
from collections.abc import Callable, Iterator

from kvblend.core.errors import KVBlendError
from kvblend.core.rest import IngestJob

__all__ = ["JobProgress", "finished", "pauses"]

JobProgress = Callable[[IngestJob], None]
"""Called with the job each time it was asked for."""

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


def pauses(timeout_s: float | None) -> Iterator[float]:
    """Yield the pauses between two looks in seconds, growing to one second.

    Raises:
        TimeoutError: `timeout_s` seconds have passed since the first look.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pause = FIRST_PAUSE_S
    while True:
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"the ingest job is not done after {timeout_s} s")
        yield pause
        pause = min(pause * 1.5, LONGEST_PAUSE_S)


def finished(job: IngestJob) -> bool:
    """Say whether a job is done.

    Raises:
        KVBlendError: it failed.
    """
    if job.status == "failed":
        raise KVBlendError(f"ingest job {job.id} failed: {job.error or 'no reason given'}")
    return job.status == "succeeded"
