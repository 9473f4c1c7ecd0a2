"""A load that is checked, its address table on the device, before the first of its layers is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.triton_kernels.address_table import AddressTable
from kvblend.triton_kernels.launch import Launch, kernel_dtype, uses_kernel
from kvblend.triton_kernels.load_rerotate.reference import load_rerotate_reference
from kvblend.triton_kernels.paged_kv import PagedLayers
from kvblend.triton_kernels.staged import StagedPassage

__all__ = ["LoadPlan"]

ELEMENTS_PER_PROGRAM = 4096


@dataclass(frozen=True)
class LoadPlan:
    """What `load_rerotate` is asked for, to be done at once or layer by layer; `run` copies nothing to the device."""

    passages: tuple[StagedPassage, ...]
    caches: PagedLayers
    slots: Tensor
    deltas: Tensor
    cos: Tensor
    sin: Tensor
    interleaved: bool
    source_layers: tuple[int, ...]
    table: AddressTable | None
    """None where no kernel is used, or there is nothing to load."""

    @classmethod
    def of(
        cls,
        passages: Sequence[StagedPassage],
        caches: PagedLayers,
        slots: Tensor,
        deltas: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        interleaved: bool,
        source_layers: Sequence[int] | None = None,
    ) -> "LoadPlan":
        """Take the arguments of `load_rerotate`. Raises ValueError where they do not fit together."""
        layers = tuple(range(len(caches.layers)) if source_layers is None else source_layers)
        _check(passages, caches, slots, deltas, cos, sin, layers)
        table = AddressTable.of(passages, layers, device=slots.device) if passages and uses_kernel(slots) else None
        return cls(tuple(passages), caches, slots, deltas, cos, sin, interleaved, layers, table)

    def run(self, cache: int | None = None) -> None:
        """Load into the caches' `cache`-th layer, or into all of them in one launch."""
        chosen = slice(None) if cache is None else slice(cache, cache + 1)
        if self.table is not None:
            for launch in self.launches(chosen):
                launch.run()
        elif self.passages:
            load_rerotate_reference(
                self.passages,
                self.caches.layers[chosen],
                self.slots,
                self.deltas,
                self.cos,
                self.sin,
                interleaved=self.interleaved,
                source_layers=self.source_layers[chosen],
            )

    def launches(self, chosen: slice = slice(None)) -> list[Launch]:
        """The launch that loads the `chosen` layers."""
        import triton

        from kvblend.triton_kernels.load_rerotate.kernel import load_rerotate_kernel

        assert self.table is not None
        cache, codec, table = self.caches.first, self.passages[0].codec, self.table
        pairs = triton.next_power_of_2(cache.head_dim // 2)
        rows = max(1, ELEMENTS_PER_PROGRAM // (2 * pairs))
        num_layers = len(self.source_layers[chosen])
        return [
            Launch(
                load_rerotate_kernel,
                (triton.cdiv(table.longest * cache.num_kv_heads, rows), 2 * num_layers, len(self.passages)),
                {
                    "source_addresses": table.addresses[chosen],
                    "cache_addresses": self.caches.addresses[chosen],
                    "first_tokens": table.first_tokens,
                    "slots": self.slots,
                    "deltas": self.deltas,
                    "cos": self.cos,
                    "sin": self.sin,
                    "num_positions": self.cos.shape[0],
                    **cache.strides(),
                },
                {
                    "INTERLEAVED": self.interleaved,
                    "ROTARY_PAIRS": self.cos.shape[1],
                    "NUM_KV_HEADS": cache.num_kv_heads,
                    "HEAD_DIM": cache.head_dim,
                    "BLOCK_SIZE": cache.block_size,
                    "CODEC": codec.name,
                    "GROUP_SIZE": codec.group_size,
                    "PAYLOAD_DTYPE": kernel_dtype(self.passages[0].payload.dtype),
                    "CACHE_DTYPE": kernel_dtype(cache.keys.dtype),
                    "ALIGNMENT": 16 if table.is_aligned and self.caches.is_aligned else 1,
                    "ROWS": rows,
                    "PAIRS": pairs,
                },
            )
        ]


def _check(
    passages: Sequence[StagedPassage],
    caches: PagedLayers,
    slots: Tensor,
    deltas: Tensor,
    cos: Tensor,
    sin: Tensor,
    source_layers: Sequence[int],
) -> None:
    cache = caches.first
    device = cache.keys.device
    if len(source_layers) != len(caches.layers):
        raise ValueError(f"{len(source_layers)} source_layers for {len(caches.layers)} caches")
    for index, passage in enumerate(passages):
        passage.check(cache.num_kv_heads, cache.head_dim, device)
        if passage.codec != passages[0].codec or passage.payload.dtype != passages[0].payload.dtype:
            raise ValueError(f"passage {index}'s codec {passage.codec} is not that of passage 0, {passages[0].codec}")
        beyond = [layer for layer in source_layers if not 0 <= layer < passage.num_layers]
        if beyond:
            raise ValueError(f"source_layers name layer {beyond[0]}; passage {index} has {passage.num_layers}")
    num_tokens = sum(passage.num_tokens for passage in passages)
    for name, tensor in (("slots", slots), ("deltas", deltas)):
        if tensor.shape != (num_tokens,) or tensor.is_floating_point() or not tensor.is_contiguous():
            raise ValueError(f"{name} are {tensor.dtype} {list(tensor.shape)}, not contiguous integers [{num_tokens}]")
    if cos.dim() != 2 or cos.shape != sin.shape or not 0 < 2 * cos.shape[1] <= cache.head_dim:
        raise ValueError(
            f"cos {list(cos.shape)} and sin {list(sin.shape)} must be [num_positions, up to {cache.head_dim // 2}]"
        )
    for name, tensor in (("cos", cos), ("sin", sin)):
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous fp32, not {tensor.dtype} of strides {tensor.stride()}")
    for name, tensor in (("slots", slots), ("deltas", deltas), ("cos", cos), ("sin", sin)):
        if tensor.device != device:
            raise ValueError(f"{name} are on {tensor.device}, the cache on {device}")
