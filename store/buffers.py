"""Memory that files are read into and written from."""

from typing import Any

import torch

from kvblend.core.errors import InvalidRequestError
from kvblend.store.format import EXTENT_ALIGNMENT, PassageKVHeader
from kvblend.triton_kernels import StagedPassage

__all__ = ["byte_view", "check_out", "empty_extents", "empty_on", "split_extents", "staged_passage"]


@torch.inference_mode(False)
def empty_on(device: torch.device, num_extents: int, extent_bytes: int) -> torch.Tensor:
    """Allocate extents on any device: uint8 [num_extents, extent_bytes], uninitialised; on a CPU as `empty_extents`.

    Whoever asks: what an engine allocates in its inference mode no thread outside of it may write.
    """
    if device.type == "cpu":  # reads may go straight there, past the page cache
        return empty_extents(num_extents, extent_bytes)
    return torch.empty((num_extents, extent_bytes), dtype=torch.uint8, device=device)


@torch.inference_mode(False)
def empty_extents(num_extents: int, extent_bytes: int, *, page_locked: bool = False) -> torch.Tensor:
    """Allocate extents that O_DIRECT can read into: uint8 [num_extents, extent_bytes], uninitialised.

    The first byte's address is a multiple of 4 KiB; so is every extent's, if `extent_bytes` is one.
    `page_locked`: a GPU can copy from it by itself (DMA); only where there is CUDA.
    """
    num_bytes = num_extents * extent_bytes + EXTENT_ALIGNMENT
    memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=page_locked)
    start = -memory.data_ptr() % EXTENT_ALIGNMENT
    return memory[start : start + num_extents * extent_bytes].view(num_extents, extent_bytes)


def split_extents(extents: torch.Tensor, header: PassageKVHeader) -> torch.Tensor:
    """View raw extents as the KV they hold, without their padding.

    extents: uint8 [num_layers, extent_bytes]. Returns [num_layers, 2, num_tokens, num_kv_heads, head_dim]:
    each layer is contiguous, layers lie `extent_bytes` apart.
    """
    layers = extents[:, : header.layer_bytes].view(header.torch_dtype)
    return layers.view(-1, *header.shape[1:])


def staged_passage(extents: torch.Tensor, header: PassageKVHeader) -> StagedPassage:
    """View staged layers, uint8 [num_layers, staged_extent_bytes] on any device, as what the kernels take."""
    return header.passage_codec.staged(extents, header.layer_shape, header.torch_dtype)


def check_out(out: torch.Tensor, *, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise InvalidRequestError unless `out` is a CPU tensor of `shape` and `dtype` whose layers are contiguous."""
    if tuple(out.shape) != shape or out.dtype != dtype or out.device.type != "cpu":
        raise InvalidRequestError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}; the file holds {shape} {dtype}, read on cpu",
            param="out",
        )
    if not (out[0] if out.dim() == 5 else out).is_contiguous():
        raise InvalidRequestError(f"a layer of strides {out.stride()[-4:]} is not contiguous", param="out")


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor of any dtype: shared, writable, and alive as long as the view is.

    Raises InvalidRequestError where the tensor is not contiguous.
    """
    if not tensor.is_contiguous():
        raise InvalidRequestError(f"a layer of strides {tensor.stride()} is not contiguous", param="out")
    array: Any = tensor.detach().view(-1).view(torch.uint8).numpy()
    return memoryview(array)
