"""One buffer in a device's memory, cut into passage KV."""

import torch

from kvblend.core.errors import InvalidRequestError
from kvblend.store.buffers import empty_on
from kvblend.store.format import EXTENT_ALIGNMENT, PassageKVHeader
from kvblend.store.gpu.device_stream import DeviceEvent, SideStream, current_event, has_passed
from kvblend.store.gpu.extent_allocator import ExtentAllocator

__all__ = ["Arena"]

MAX_READS = 64
"""With more reads to wait for than this, those that are over are forgotten."""


class Arena:
    """Ranges of `num_bytes`, rounded down to whole 4 KiB, in the memory of `device`.

    It is called under one lock. What is written goes over `stream`, behind everything that read or wrote
    a range before it was freed.

    Raises InvalidRequestError where the device has not that much memory free, or is neither cuda nor cpu.
    """

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        self.stream = SideStream(device)
        num_bytes -= num_bytes % EXTENT_ALIGNMENT
        try:
            self._memory = empty_on(self.stream.device, 1, num_bytes)[0]
        except RuntimeError as error:  # a GPU's torch.OutOfMemoryError is one too
            raise InvalidRequestError(
                f"{num_bytes} bytes for KVBLEND_GPU_BYTES cannot be had on {device}; lower it, or vLLM's "
                f"--gpu-memory-utilization: {error}",
                param="KVBLEND_GPU_BYTES",
            ) from error
        self.device = self.stream.device
        self.ranges = ExtentAllocator(num_bytes)
        self._reads: list[DeviceEvent] = []

    def allocate(self, header: PassageKVHeader) -> tuple[int, torch.Tensor] | None:
        """Where a range for such a passage KV starts, and its rows: uint8 [num_layers, staged_extent_bytes].

        None where no hole is large enough.
        """
        num_bytes = header.num_layers * header.staged_extent_bytes
        start = self.ranges.allocate(num_bytes)
        if start is None:
            return None
        for event in self._reads:
            self.stream.wait_for(event)
        self._reads.clear()
        return start, self._memory[start : start + num_bytes].view(header.num_layers, header.staged_extent_bytes)

    def note_read(self) -> None:
        """Let what is written from now on wait for what this thread's current stream was given."""
        event = current_event(self.device)
        if event is not None:
            if len(self._reads) >= MAX_READS:
                self._reads = [read for read in self._reads if not has_passed(read)]
            self._reads.append(event)

    def close(self) -> None:
        """Let the buffer go; it is freed with the last view of it."""
        self._memory = self._memory[:0].clone()
