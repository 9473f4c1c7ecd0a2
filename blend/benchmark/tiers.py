"""Where a benchmark's passage KV waits: in device memory, or in pinned host memory as a tier's files have it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvblend.triton_kernels import Codec, StagedPassage
from kvblend.triton_kernels.codecs import quantize

__all__ = ["DeviceTier", "PinnedTier"]

LAYERS_AHEAD = 3


class DeviceTier:
    """Passages that are in device memory whole."""

    def __init__(self, passages: Sequence[StagedPassage]) -> None:
        self.staged = passages

    def begin(self) -> None:
        """Nothing has to arrive."""

    def ready(self, layer: int) -> None:
        """Every layer is there."""


class PinnedTier:
    """Passages in pinned host memory, one extent a layer, copied on a stream of their own ahead of what reads them.

    extents [num_layers, payload of keys, of values, scales of keys, of values]      bytes, on the host and staged
    """

    def __init__(self, passages: Sequence[StagedPassage], *, codec: Codec) -> None:
        """Of raw `passages` on the device, encoded by `codec`."""
        self._hosts: list[Tensor] = []
        self._extents: list[Tensor] = []
        self.staged: list[StagedPassage] = []
        device = passages[0].payload.device
        for passage in passages:
            payload, scales = quantize(passage.payload, codec)
            extents = torch.cat((_bytes(payload), _bytes(scales)), dim=1)
            host = torch.empty(extents.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
            self._hosts.append(host.copy_(extents))
            self._extents.append(extents.zero_())
            num_bytes = _bytes(payload).shape[1]
            self.staged.append(
                StagedPassage(
                    extents[:, :num_bytes].view(payload.dtype).view(payload.shape),
                    extents[:, num_bytes:].view(scales.dtype).view(scales.shape),
                    codec,
                )
            )
        self._stream, self._events = None, list[Any]()
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._events = [torch.cuda.Event() for _ in self._extents[0]]  # type: ignore[no-untyped-call]
        self._num_copied = 0

    def begin(self) -> None:
        """Begin to copy, behind all that the current stream was asked for."""
        self._num_copied = 0
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        self._copy_up_to(LAYERS_AHEAD)

    def ready(self, layer: int) -> None:
        """Let the current stream wait for a layer, and send the next ones on their way."""
        self._copy_up_to(layer + 1 + LAYERS_AHEAD)
        if self._stream is not None:
            torch.cuda.current_stream().wait_event(self._events[layer])

    def _copy_up_to(self, end: int) -> None:
        end = min(end, len(self._extents[0]))
        with torch.cuda.stream(self._stream):
            for layer in range(self._num_copied, end):
                for host, extents in zip(self._hosts, self._extents, strict=True):
                    extents[layer].copy_(host[layer], non_blocking=True)
                if self._stream is not None:
                    self._events[layer].record(self._stream)
        self._num_copied = max(self._num_copied, end)


def _bytes(tensor: Tensor) -> Tensor:
    """`[num_layers, ...]` as uint8 `[num_layers, bytes]`."""
    return tensor.flatten(1).view(torch.uint8)
