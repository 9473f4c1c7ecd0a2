"""All layers' paged caches, and whether our kernels or plain PyTorch work on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.core.errors import UnsupportedModelError
from kvblend.triton_kernels import PagedKV, PagedLayers, StagedPassage, gather_quantize
from kvblend.triton_kernels.launch import to_device, uses_kernel
from kvblend.vllm_connector.engine.layer_cache import LayerCache

__all__ = ["EngineCaches", "LayerGroup"]


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one KV cache group, and so of one block table, that one launch can serve."""

    indices: tuple[int, ...]
    """Which of the model's layers they are, ascending."""
    caches: PagedLayers
    first: LayerCache

    def slots(self, block_ids: Sequence[Sequence[int]], positions: Tensor) -> Tensor:
        """Slots of a request's tokens at `positions` (int64 `[n]`, on CPU), int64 `[n]`; in a null block they are -1.

        block_ids: the request's, by KV cache group.
        """
        pages, size = torch.tensor(self.first.pages(block_ids[self.first.group])), self.first.page_size
        at = pages[positions // size]
        return torch.where(at == 0, -1, at * size + positions % size)


class EngineCaches:
    """Every layer's paged cache, in the model's order.

    `groups` are what the kernels work on: on CUDA, and on CPU in Triton's interpreter where that is switched on. They
    are None where plain PyTorch does the work, on dense copies. This is the one place that decides it. Raises
    UnsupportedModelError where the kernels must run and cannot address a layer's cache.
    """

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = tuple(layers)
        self.groups: tuple[LayerGroup, ...] | None = None
        if uses_kernel(self.layers[0].layer.kv_cache):
            self.groups = tuple(_grouped(self.layers))

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.layers[0].layer.kv_cache.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        device: torch.device = self.layers[0].layer.kv_cache.device
        return device

    def kv_shape(self, num_tokens: int) -> tuple[int, int, int, int, int]:
        """`[layer, k|v, token, kv_head, head_dim]`: the last two are the same for all layers."""
        return len(self.layers), 2, num_tokens, self.layers[0].num_kv_heads, self.layers[0].head_dim

    def empty(self, num_tokens: int) -> Tensor:
        """Uninitialised passage KV `[layer, k|v, token, kv_head, head_dim]`, of the caches' dtype, on their device."""
        return torch.empty(self.kv_shape(num_tokens), dtype=self.dtype, device=self.device)

    def warm(self) -> None:
        """Launch once all that encodes launch, on a token of the null pages, so that none waits for a compiler."""
        num_groups = 1 + max(layer.group for layer in self.layers)
        self.read_into(self.empty(1), [[0]] * num_groups, 0, 1)

    def read_into(self, kv: Tensor, block_ids: Sequence[Sequence[int]], start: int, end: int) -> None:
        """Copy a request's tokens `[start, end)` to `kv` `[layer, k|v, end - start, kv_head, head_dim]`.

        block_ids: the request's, by KV cache group. One launch for each group of layers where kernels run. What a
        null block held is undefined. The last three axes of `kv` are contiguous.
        """
        if self.groups is None:
            for index, layer in enumerate(self.layers):
                kv[index, 0], kv[index, 1] = layer.read(block_ids[layer.group], start, end)
            return
        out = StagedPassage.raw(kv)
        for group in self.groups:
            slots = to_device(group.slots(block_ids, torch.arange(start, end)), self.device)
            gather_quantize(
                group.caches, slots, [end - start], codec=out.codec, out=[out], target_layers=list(group.indices)
            )


def _grouped(layers: Sequence[LayerCache]) -> list[LayerGroup]:
    views: dict[tuple[object, ...], list[tuple[int, PagedKV]]] = {}
    for index, layer in enumerate(layers):
        if layer.view is None:
            raise UnsupportedModelError(
                f"the KV layout of {type(layer.layer.impl).__name__} with {layer.head_dim} dimensions a head in "
                f"{layer.layer.kv_cache.dtype} is not one that kvblend's kernels can address"
            )
        views.setdefault((layer.group, layer.view.layout), []).append((index, layer.view))
    return [
        LayerGroup(
            tuple(index for index, _ in members),
            PagedLayers.of([view for _, view in members]),
            layers[members[0][0]],
        )
        for members in views.values()
    ]
