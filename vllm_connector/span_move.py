"""One span on its way from its file to where it goes, a layer at a time, through memory that is used again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvblend.blend import RotaryTable, rerotate_into
from kvblend.blend.host_kernels import copy_with_norms, has_host_kernels, rotate, vectors
from kvblend.store import OpenPassageKV
from kvblend.store.buffers import byte_view, split_extents
from kvblend.vllm_connector.host_context import LayerRows

__all__ = ["SpanMove"]


class SpanMove:
    """Reads layers of an open file, all but its first `skipped` tokens, and moves them by `delta` positions.

    extent: memory of at least one of the file's; keys: `[n, kv_heads, head_dim]` of at least the tokens' number. Both
    may be other spans' too, of which one is on its way at a time. kept: rows of a layer's in each of several places,
    for the span's tokens, where keys and values are kept instead.
    """

    def __init__(
        self, file: OpenPassageKV, delta: int, skipped: int, extent: Tensor, keys: Tensor, kept: Sequence[LayerRows]
    ) -> None:
        self._file, self._delta, self._kept = file, delta, kept
        own = extent[:, : file.header.extent_bytes]
        self._memory = byte_view(own)
        self._stored, self._values = split_extents(own, file.header)[0][:, skipped:]
        self._keys = [rows.keys for rows in kept] or [keys[: len(self._stored)]]
        # views for the kernels are made here: each takes as long as a kernel does on a short passage
        self._has_kernels = has_host_kernels(self._stored) and has_host_kernels(self._keys[0])
        if self._has_kernels:
            self._from = vectors(self._stored), vectors(self._values)
            self._to = [vectors(own) for own in self._keys]
            self._kept_to = [(vectors(rows.values), rows.norms.view(-1).numpy()) for rows in kept]
        self._angles: dict[int, tuple[Tensor, Tensor]] = {}

    def read(self, layer: int) -> None:
        """Read a layer and check it. Raises as `OpenPassageKV.read_extent`."""
        self._file.read_extent(layer, self._memory)

    def take(self, table: RotaryTable | None, place: int) -> tuple[Tensor, Tensor]:
        """Keys as they are where they go, and values, until the next layer is read; `table` is the layer's.

        `place`: where rows are kept; 0 where they are not.
        """
        keys = self._keys[place]
        if not self._has_kernels:
            self._take_slowly(table, place)
            return keys, self._values
        stored, values = self._from
        if self._kept_to:
            target, norms = self._kept_to[place]
            copy_with_norms(values, target=target, norms=norms)
        if table is None or self._delta == 0:
            keys.copy_(self._stored)
        else:
            angles = self._angles.get(id(table))
            if angles is None:
                angles = self._angles[id(table)] = table.angles(self._delta)
            rotate(stored, *angles, interleaved=table.interleaved, target=self._to[place])
        return keys, self._values

    def _take_slowly(self, table: RotaryTable | None, place: int) -> None:
        """As `take`, by PyTorch."""
        if self._kept:
            self._kept[place].values.copy_(self._values)
            torch.linalg.vector_norm(self._values, dim=-1, dtype=torch.float32, out=self._kept[place].norms)
        if table is None:
            self._keys[place].copy_(self._stored)
        else:
            rerotate_into(self._stored, table, delta=self._delta, out=self._keys[place])
