"""Who works on what, as the host says that decides of it."""

import hashlib
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kvblend.core.errors import InvalidRequestError

__all__ = ["PeerClaims", "deciders"]

MAX_CLAIMS = 1 << 16

Named = TypeVar("Named")


@dataclass(frozen=True)
class _Claim:
    holder: str
    connection: Hashable
    until: float


class PeerClaims:
    """Claims of names, each for a while, or until the connection ends over which it was asked for: so a host that dies
    holds nothing, and what was asked by one that gave up is not granted to nobody. For one thread, an event loop's.
    """

    def __init__(self) -> None:
        self._claims: dict[str, _Claim] = {}

    def take(self, name: str, *, holder: str, seconds: float, connection: Hashable) -> bool:
        """Whether `holder`, a word of its own for this claim, has the name now.

        Raises InvalidRequestError where there are too many claims.
        """
        now = time.monotonic()
        held = self._claims.get(name)
        if held is not None and held.until > now:
            return False
        if held is None and len(self._claims) >= MAX_CLAIMS:
            self._claims = {own: claim for own, claim in self._claims.items() if claim.until > now}
            if len(self._claims) >= MAX_CLAIMS:
                raise InvalidRequestError(f"there are {MAX_CLAIMS} claims, and no more can be")
        self._claims[name] = _Claim(holder, connection, now + seconds)
        return True

    def give_back(self, name: str, *, holder: str) -> None:
        """Whoever has it now, if that is not `holder`, keeps it."""
        held = self._claims.get(name)
        if held is not None and held.holder == holder:
            del self._claims[name]

    def ended(self, connection: Hashable) -> None:
        """What was asked for over a connection that is closed."""
        self._claims = {name: claim for name, claim in self._claims.items() if claim.connection != connection}


def deciders(name: str, peers: Sequence[Named]) -> list[Named]:
    """Who decides of a name: the first of these that answers. All who know the same peers get the same order, and where
    one goes away only its names go to others (rendezvous hashing)."""
    return sorted(peers, key=lambda peer: hashlib.sha256(f"{peer} {name}".encode()).digest())
