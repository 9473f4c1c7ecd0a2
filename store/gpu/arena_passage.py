"""A passage KV that lies in a device's arena, and what holds it there."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import xxhash

from kvblend.store.buffers import staged_passage
from kvblend.store.format import PassageKVHeader
from kvblend.store.gpu.device_stream import DeviceEvent, make_current_wait
from kvblend.store.key import PassageKVKey
from kvblend.store.open_passage import OpenPassageKV
from kvblend.store.tier import Pin
from kvblend.triton_kernels import StagedPassage

__all__ = ["ArenaPassage", "ArenaPin", "Resident"]


@dataclass(eq=False)
class Resident:
    """One passage KV in the arena. All but its bytes is guarded by its tier's lock.

    `extents` is uint8 [num_layers, extent_bytes], at byte `start` of the arena, whole once `written` has passed.
    It is `listed` while a lookup finds it; its bytes are its own until, besides, nobody has it open.
    """

    header: PassageKVHeader
    start: int
    extents: torch.Tensor
    used_ns: int
    written: DeviceEvent = None
    num_pins: int = 0
    num_opens: int = 0
    listed: bool = False

    @property
    def key(self) -> PassageKVKey:
        return self.header.key

    @property
    def num_bytes(self) -> int:
        return self.extents.numel()

    @property
    def is_held(self) -> bool:
        return self.num_pins > 0 or self.num_opens > 0


class ArenaPassage(OpenPassageKV):
    """A resident, held open: it is neither evicted nor overwritten until `close`.

    Close it in the thread whose current stream used what `staged` gave: what is written there next waits for that
    stream's work so far.
    """

    def __init__(self, resident: Resident, *, tier: str, on_close: Callable[[Resident], None]) -> None:
        self.header = resident.header
        self.tier = tier
        self.resident = resident
        self._on_close: Callable[[Resident], None] | None = on_close

    @property
    def num_bytes(self) -> int:
        return self.resident.num_bytes

    def staged(self) -> StagedPassage:
        extents = self.resident.extents
        make_current_wait(extents.device, self.resident.written)
        return staged_passage(extents, self.header)

    def read_extent(self, layer: int, extent: memoryview) -> None:
        source = self.resident.extents[layer]
        make_current_wait(source.device, self.resident.written)
        torch.frombuffer(extent, dtype=torch.uint8).copy_(source)
        self._check(layer, xxhash.xxh3_64(extent))

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self.resident)


class ArenaPin(Pin):
    """Counts as one of a resident's pins until it is released."""

    def __init__(self, resident: Resident, *, on_release: Callable[[Resident], None]) -> None:
        self._resident = resident
        self._on_release: Callable[[Resident], None] | None = on_release

    def holds(self) -> bool:
        return self._on_release is not None and self._resident.listed

    def release(self) -> None:
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release(self._resident)
