"""Where passage KV that must be read land on a device, and the parts in which they come."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from kvblend.store.buffers import empty_on, staged_passage
from kvblend.store.format import PassageKVHeader
from kvblend.store.gpu.arena_passage import ArenaPassage
from kvblend.triton_kernels import StagedPassage

__all__ = ["Landing", "LayerPart"]

PART_BYTES = 4 << 20
"""What one thread reads at a time; a larger extent is a part of its own."""


@dataclass(frozen=True)
class LayerPart:
    """Extents of one layer, by the place of their passage: uint8 [staged_extent_bytes] each, on the device.

    `whole`: uint8, where they lie side by side in this order, so that one copy fills them.
    """

    layer: int
    extents: Mapping[int, torch.Tensor]
    whole: torch.Tensor | None


class Landing:
    """Device memory for passages of `num_layers` layers, named by their place in a staging.

    Those in `reserved` have room in a GPU tier's arena, for all layers. The others share a window of `num_rows`
    layers, which may be fewer than the passages have:

        row 0: | passage 0 | passage 1 | ...      layers 0, num_rows, 2 * num_rows ...
        row 1: | passage 0 | passage 1 | ...      layers 1, num_rows + 1 ...

    It is as many as the window, uint8 bytes that nobody uses now, holds; where it does not hold two, one in use and one
    on its way, two that are allocated.
    """

    def __init__(
        self,
        headers: Mapping[int, PassageKVHeader],
        reserved: Mapping[int, ArenaPassage],
        *,
        num_layers: int,
        window: torch.Tensor,
        device: torch.device,
    ) -> None:
        self.headers = headers
        self.reserved = reserved
        self._starts: dict[int, int] = {}
        row_bytes = 0
        for place, header in headers.items():
            if place not in reserved:
                self._starts[place] = row_bytes
                row_bytes += header.staged_extent_bytes
        self.num_rows = min(num_layers, max(2, len(window) // row_bytes)) if row_bytes else num_layers
        num_bytes = self.num_rows * row_bytes
        if num_bytes > len(window):
            window = empty_on(device, 1, num_bytes)[0]
        self._window = window[:num_bytes].view(self.num_rows, row_bytes)

    def passage(self, place: int) -> StagedPassage:
        """What the kernels take: its row `layer % num_layers` holds a layer once that has come."""
        if place in self.reserved:
            return self.reserved[place].staged()
        start = self._starts[place]
        return staged_passage(self._window[:, start : self._end(place)], self.headers[place])

    def parts(self, layer: int) -> Iterator[LayerPart]:
        """What there is to read of a layer."""
        row = self._window[layer % self.num_rows]
        for group in self._groups(list(self._starts)):
            extents = {place: row[self._starts[place] : self._end(place)] for place in group}
            yield LayerPart(layer, extents, row[self._starts[group[0]] : self._end(group[-1])])
        for group in self._groups(list(self.reserved)):
            extents = {place: self.reserved[place].resident.rows[layer] for place in group}
            yield LayerPart(layer, extents, extents[group[0]] if len(group) == 1 else None)

    def _groups(self, places: list[int]) -> Iterator[list[int]]:
        group: list[int] = []
        num_bytes = 0
        for place in places:
            size = self.headers[place].staged_extent_bytes
            if group and num_bytes + size > PART_BYTES:
                yield group
                group, num_bytes = [], 0
            group.append(place)
            num_bytes += size
        if group:
            yield group

    def _end(self, place: int) -> int:
        return self._starts[place] + self.headers[place].staged_extent_bytes
