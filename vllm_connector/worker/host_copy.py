"""A tensor on its way from the device to the host, beside whatever the device computes."""

from functools import cache

import torch
from torch import Tensor

from kvblend.store.gpu.device_stream import DeviceEvent, SideStream

__all__ = ["HostCopy"]


class HostCopy:
    """Begins the copy on construction, behind all that the current stream has been given; `wait` ends it.

    On CUDA the copy goes to page-locked memory on a stream of its own, so that neither the engine nor the device waits
    for it. A tensor on CPU is its own copy: it must not be changed any more.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor
        self._copied: DeviceEvent = None
        if not tensor.is_cuda:
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        stream = _side_stream(tensor.device)
        stream.wait_for_current()
        with stream.use():
            self._host.copy_(tensor, non_blocking=True)
            # the allocator must not give the memory to the compute stream before the copy has read it
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
        self._copied = stream.event()

    @property
    def num_bytes(self) -> int:
        """Host memory that it holds."""
        return self._host.nbytes

    def wait(self) -> Tensor:
        """The tensor in host memory, whole. Called from any thread."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host


@cache
def _side_stream(device: torch.device) -> SideStream:
    return SideStream(device)
