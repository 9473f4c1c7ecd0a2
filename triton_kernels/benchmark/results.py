"""Every kernel, one after the other."""

from collections.abc import Iterator

import torch

from kvblend.triton_kernels.benchmark.attention import attention
from kvblend.triton_kernels.benchmark.moves import deviation, moves, writes
from kvblend.triton_kernels.benchmark.result import KernelResult
from kvblend.triton_kernels.codecs import Codec

__all__ = ["kernel_results"]

CODECS = (Codec(), Codec("fp8", 64), Codec("int8", 64), Codec("int4", 32))


def kernel_results(device: torch.device) -> Iterator[KernelResult]:
    """Raises AssertionError where a kernel is wrong: no speed is reported from a wrong result."""
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    num_layers, num_tokens = (32, 4096) if on_gpu else (2, 512)
    for codec in CODECS:
        yield from moves(codec, num_layers, num_tokens, device)
    yield deviation(num_tokens, device)
    yield writes(num_tokens, device)
    for length in (4096, 16384, 32768) if on_gpu else (256,):
        yield from attention(length, device)
