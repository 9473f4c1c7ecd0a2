"""What a claim says, where a store has no locks of its own."""

import secrets
import time
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["ClaimNote"]

MARGIN_S = 2.0
"""So long before its end a holder lets it be: who takes it over then must not lose it."""


class ClaimNote(BaseModel):
    """Who has a claim, by a name that is nobody else's, and until when, in seconds since the epoch.

    Clocks of hosts may differ: one that goes ahead may take over a claim that is not over, and the passage is encoded
    twice, which harms nothing.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    holder: str
    until: float

    @classmethod
    def new(cls, seconds: float) -> Self:
        return cls(holder=secrets.token_hex(16), until=time.time() + seconds)

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """None where it is no note: then it is nobody's claim."""
        try:
            return cls.model_validate_json(data)
        except ValidationError:
            return None

    def pack(self) -> bytes:
        return self.model_dump_json().encode()

    @property
    def is_over(self) -> bool:
        """Whether the next one may have it."""
        return time.time() >= self.until

    @property
    def is_nearly_over(self) -> bool:
        """Whether its own holder leaves it to who takes it over."""
        return time.time() >= self.until - MARGIN_S
