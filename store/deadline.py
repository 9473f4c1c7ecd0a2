"""Until when an answer is worth waiting for."""

import math
import time
from dataclasses import dataclass
from typing import Self

__all__ = ["NEVER", "Deadline"]


@dataclass(frozen=True)
class Deadline:
    """A moment of `time.monotonic()`, in seconds."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Self:
        """So many seconds from now."""
        return cls(time.monotonic() + seconds)

    @property
    def remaining(self) -> float:
        """Seconds that are left: 0 where it has passed, infinity where it never does."""
        return max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.at


NEVER = Deadline(math.inf)
