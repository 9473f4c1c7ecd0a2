"""Page-locked host memory that reads pass through on their way to a GPU."""

from collections import deque
from dataclasses import dataclass

import torch

from kvblend.store.buffers import empty_extents
from kvblend.store.format import aligned
from kvblend.store.gpu.device_stream import DeviceEvent, has_passed

__all__ = ["HostRing", "Piece"]


@dataclass(eq=False)
class Piece:
    """Part of the ring: uint8 [num_bytes], from `start`. It is reused once it was released and `copied` has passed."""

    memory: torch.Tensor
    start: int
    end: int
    released: bool = False
    copied: DeviceEvent = None


class HostRing:
    """Hands out pieces of one buffer and takes them back in the order in which it gave them.

    It is allocated when it is first needed, of `num_bytes` or, if that is more, one piece's; registered with CUDA if
    `page_locked`. For one thread at a time.
    """

    def __init__(self, num_bytes: int, *, page_locked: bool) -> None:
        self.num_bytes = num_bytes
        self._page_locked = page_locked
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._pieces: deque[Piece] = deque()

    def take(self, num_bytes: int) -> Piece | None:
        """A piece that starts at a multiple of 4 KiB; None where pieces that are still in use leave no room."""
        while self._pieces and self._pieces[0].released and has_passed(self._pieces[0].copied):
            self._pieces.popleft()
        size = aligned(num_bytes)
        if not self._pieces and size > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8)  # the old one goes before the new one comes
            self.num_bytes = max(self.num_bytes, size)
            self._memory = empty_extents(1, self.num_bytes, page_locked=self._page_locked)[0]
        start = self._place(size)
        if start is None:
            return None
        piece = Piece(self._memory[start : start + num_bytes], start, start + size)
        self._pieces.append(piece)
        return piece

    def release(self, piece: Piece, copied: DeviceEvent = None) -> None:
        """Let a piece be reused once `copied` has passed."""
        piece.released, piece.copied = True, copied

    def wait(self) -> bool:
        """Wait until the oldest piece is copied; False where there is none, or it was not released yet."""
        if not self._pieces or not self._pieces[0].released:
            return False
        event = self._pieces.popleft().copied
        if event is not None:
            event.synchronize()
        return True

    def _place(self, size: int) -> int | None:
        """Where `size` bytes side by side are free, behind the newest piece or at the start of the buffer."""
        if not self._pieces:
            return 0
        oldest, newest = self._pieces[0].start, self._pieces[-1].end
        wrapped = newest <= oldest
        if newest + size <= (oldest if wrapped else len(self._memory)):
            return newest
        return 0 if not wrapped and size <= oldest else None
