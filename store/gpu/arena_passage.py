"""A passage KV that lies in a device's arena, and what holds it there."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kvblend.store.buffers import staged_passage
from kvblend.store.format import PassageKVHeader
from kvblend.store.gpu.device_stream import DeviceEvent, make_current_wait
from kvblend.store.key import PassageKVKey
from kvblend.store.open_passage import OpenPassageKV
from kvblend.triton_kernels import StagedPassage

__all__ = ["ArenaPassage", "Resident"]


@dataclass(eq=False)
class Resident:
    """One passage KV in the arena. All but its bytes is guarded by its tier's lock.

    `rows` is uint8 [num_layers, staged_extent_bytes], at byte `start` of the arena, whole once `written` has passed.
    It is `listed` while a lookup finds it; its bytes are its own until, besides, nobody has it open.
    """

    header: PassageKVHeader
    start: int
    rows: torch.Tensor
    written: DeviceEvent = None
    num_opens: int = 0
    listed: bool = False

    @property
    def key(self) -> PassageKVKey:
        return self.header.key

    @property
    def num_bytes(self) -> int:
        return self.rows.numel()


class ArenaPassage(OpenPassageKV):
    """A resident, held open: it is neither evicted nor overwritten until `close`.

    Close it in the thread whose current stream used what `staged` gave: what is written there next waits for that
    stream's work so far.
    """

    def __init__(
        self,
        resident: Resident,
        *,
        tier: str,
        on_close: Callable[[Resident], None],
        on_quarantine: Callable[[Resident], bool],
    ) -> None:
        self.header, self.tier, self.resident = resident.header, tier, resident
        self._on_close: Callable[[Resident], None] | None = on_close
        self._on_quarantine = on_quarantine

    @property
    def num_bytes(self) -> int:
        return self.resident.num_bytes

    def staged(self) -> StagedPassage:
        rows = self.resident.rows
        make_current_wait(rows.device, self.resident.written)
        return staged_passage(rows, self.header)

    def quarantine(self) -> bool:
        return self._on_quarantine(self.resident)

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self.resident)
