"""Device memory for passage KV that must be read, and the parts in which it is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from kvblend.store.buffers import empty_extents
from kvblend.store.format import PassageKVHeader

__all__ = ["LayerPart", "Unread"]

PART_BYTES = 4 << 20
"""What one thread reads, and one copy moves, at a time; a larger extent is a part of its own."""


@dataclass(frozen=True)
class LayerPart:
    """Extents of one layer that lie side by side: uint8 [num_bytes], and where in it each passage's extent is."""

    layer: int
    memory: torch.Tensor
    extents: Mapping[int, slice]


class Unread:
    """Memory for passages, named by their place in a staging: uint8 [num_layers, all extents side by side].

        layer 0: | passage 0 | passage 1 | ...      of one layer, small passages are one copy together,
        layer 1: | passage 0 | passage 1 | ...      and a passage's layers lie a row apart

    `headers`: by place, in order.
    """

    def __init__(self, headers: Mapping[int, PassageKVHeader], device: torch.device) -> None:
        self.headers = headers
        self._starts: dict[int, int] = {}
        row_bytes = 0
        for place, header in headers.items():
            self._starts[place] = row_bytes
            row_bytes += header.extent_bytes
        num_rows = max((header.num_layers for header in headers.values()), default=0)
        if device.type == "cpu":  # reads may go straight there, past the page cache
            self._memory = empty_extents(num_rows, row_bytes)
        else:
            self._memory = torch.empty((num_rows, row_bytes), dtype=torch.uint8, device=device)

    def extents(self, place: int) -> torch.Tensor:
        """One passage's memory: uint8 [num_layers, extent_bytes]."""
        header, start = self.headers[place], self._starts[place]
        return self._memory[: header.num_layers, start : start + header.extent_bytes]

    def parts(self, layer: int) -> Iterator[LayerPart]:
        """What there is to read of a layer, in order."""
        group: list[int] = []
        for place, header in self.headers.items():
            if group and self._end(place) - self._starts[group[0]] > PART_BYTES:
                yield self._part(layer, group)
                group = []
            if layer < header.num_layers:
                group.append(place)
        if group:
            yield self._part(layer, group)

    def _end(self, place: int) -> int:
        return self._starts[place] + self.headers[place].extent_bytes

    def _part(self, layer: int, group: list[int]) -> LayerPart:
        first, last = self._starts[group[0]], self._end(group[-1])
        extents = {place: slice(self._starts[place] - first, self._end(place) - first) for place in group}
        return LayerPart(layer, self._memory[layer, first:last], extents)
