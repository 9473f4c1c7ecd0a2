"""Where contexts are blended, as the life of a blend sees it; on a GPU `DevicePages`, on a CPU `HostPages`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from kvblend.blend import ContextKV
from kvblend.store import OpenPassageKV

__all__ = ["BlendContext", "Pages", "PlacedKV"]


class BlendContext(ContextKV, Protocol):
    """A context of which some tokens may be missing: `readable` bool `[token]`, on CPU."""

    readable: Tensor


@dataclass(frozen=True)
class PlacedKV:
    """Tokens of one open passage KV, all but its first `skipped` and its last `left_out`.

    The first of all goes to position `start`, which is below 0 where only skipped ones would stand there.
    """

    file: OpenPassageKV
    start: int
    skipped: int
    left_out: int = 0

    @property
    def stop(self) -> int:
        """The token of the passage behind the last one that is placed."""
        return self.file.header.num_tokens - self.left_out

    @property
    def delta(self) -> int:
        """Positions by which it moves."""
        return self.start - self.file.header.capture_position


class Pages(Protocol):
    """The engine's own pages, and scratch pages for layers with a sliding window, whose early blocks it takes back.

    All but `bring` is for the engine's thread and waits for nothing.
    """

    def reserve(self, num_tokens: int) -> list[int] | None:
        """Scratch pages of a context, none where no layer needs them; None where it must wait until others are free.

        Give them back with `release`.
        """

    def release(self, scratch: Sequence[int]) -> None: ...

    def context(self, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], *, num_tokens: int, hit: int) -> Any:
        """A `BlendContext` over a request's blocks, by KV cache group, with its local hit of `hit` tokens in it."""

    def bring(self, context: Any, passages: Sequence[PlacedKV], *, hit: int) -> dict[int, str]:
        """Read, check, turn and write passages into a context; on return they are there, for whoever reads next.

        In the calling thread. Tokens of the local hit, in blocks that others share, are not written. Returns what was
        wrong with passages that cannot be used, by their place. Raises IndexError or ValueError where one would move
        beyond its rotary table.
        """

    def copy_back(self, context: Any, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], *, hit: int) -> None:
        """Copy what lies behind the local hit, and not in the request's blocks, to those of them that it still has."""
