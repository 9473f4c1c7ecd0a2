"""A tensor on its way from the device to the host, beside whatever the device computes."""

from functools import cache

import torch
from torch import Tensor

__all__ = ["HostCopy"]


class HostCopy:
    """Begins the copy on construction, behind all that the current stream has been given; `wait` ends it.

    On CUDA the copy goes to page-locked memory on a stream of its own, so that neither the engine nor the device waits
    for it. A tensor on CPU is its own copy: it must not be changed any more.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = tensor
        if not tensor.is_cuda:
            return
        stream = _copy_stream(tensor.device)
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            self._host.copy_(tensor, non_blocking=True)
            # the allocator must not give the memory to the compute stream before the copy has read it
            tensor.record_stream(stream)
            self._event = torch.cuda.Event(blocking=True)
            self._event.record(stream)

    @property
    def num_bytes(self) -> int:
        """Host memory that it holds."""
        return self._host.nbytes

    def wait(self) -> Tensor:
        """The tensor in host memory, whole. Called from any thread."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


@cache
def _copy_stream(device: torch.device) -> "torch.cuda.Stream":
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
