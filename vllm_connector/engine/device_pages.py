"""The pages that blends work on: the engine's own, and others for layers whose blocks the engine frees early."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvblend.blend import AttentionSpec, RotaryTable
from kvblend.blend.paged import PagedCaches
from kvblend.triton_kernels import PagedKV, PagedLayers
from kvblend.vllm_connector.engine.caches import EngineCaches, LayerGroup
from kvblend.vllm_connector.engine.move_kv import move_kv
from kvblend.vllm_connector.engine.scratch_pages import ScratchPages

__all__ = ["SCRATCH_GROUP", "BlendPages"]

SCRATCH_GROUP = -1
"""The block tables' group of layers that have scratch pages."""


class BlendPages:
    """One `PagedCaches` for the blends of a worker.

        a layer that keeps its blocks    its own pages; a context is loaded, probed and repaired where it stays
        a layer with a sliding window    scratch pages, as many as the context has: the engine's blocks behind the
                                         window are null, and what lies in the others is copied there and back

    Scratch pages are allotted to contexts by `reserve`; their memory grows, to two of the largest context, when no
    context has any.
    """

    def __init__(
        self, caches: EngineCaches, specs: Sequence[AttentionSpec], tables: Sequence[RotaryTable | None]
    ) -> None:
        assert caches.groups is not None
        self._engine, self._specs, self._tables = caches, specs, tables
        self._scratched = [group for group in caches.groups if not group.first.keeps_blocks]
        self._page_size = self._scratched[0].first.page_size if self._scratched else 1
        self._pages = ScratchPages(self._allocate)

    def reserve(self, num_tokens: int) -> list[int] | None:
        """Scratch pages of a context, none where no layer needs them; None where it must wait until others are free.

        Give them back with `release`.
        """
        return self._pages.reserve(-(-num_tokens // self._page_size) if self._scratched else 0)

    def release(self, pages: Sequence[int]) -> None:
        self._pages.release(pages)

    def block_tables(
        self, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], num_tokens: int
    ) -> dict[int, Tensor]:
        """A context's pages by group, for `PagedContextKV`; block_ids are the request's, by KV cache group."""
        tables = {}
        for index, layer in enumerate(self._engine.layers):
            group = self.caches.groups[index]
            if group not in tables:
                pages = scratch if group == SCRATCH_GROUP else layer.pages(block_ids[group])
                table = torch.tensor(pages[: -(-num_tokens // self.caches.layers[index].block_size)])
                assert bool((table != 0).all()), f"KV cache group {group} has freed blocks of a request that is blended"
                tables[group] = table
        return tables

    def copy_in(self, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], positions: Tensor) -> None:
        """Copy tokens at `positions` from the engine's blocks to scratch pages, without those that it has freed."""
        for group, pages, ours, theirs in self._both(block_ids, scratch, positions):
            move_kv(group.caches, theirs, pages, ours)

    def copy_back(self, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], positions: Tensor) -> None:
        """Undo `copy_in`."""
        for group, pages, ours, theirs in self._both(block_ids, scratch, positions):
            move_kv(pages, ours, group.caches, theirs)

    def _both(
        self, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], positions: Tensor
    ) -> list[tuple[LayerGroup, PagedLayers, Tensor, Tensor]]:
        both = []
        for group, pages in zip(self._scratched, self._scratch_layers, strict=True):
            theirs, size = group.slots(block_ids, positions), self._page_size
            ours = torch.tensor(scratch)[positions // size] * size + positions % size
            both.append((group, pages, ours[theirs >= 0], theirs[theirs >= 0]))
        return both

    def _views(self) -> list[PagedKV]:
        views = [layer.view for layer in self._engine.layers]
        return [view for view in views if view is not None]

    def _allocate(self, num_pages: int) -> None:
        """Scratch memory for so many pages, besides the null page; zeros, since what is masked must be finite."""
        layers, groups, scratch_layers = self._views(), [layer.group for layer in self._engine.layers], []
        for group in self._scratched:
            shape = (len(group.indices), 2, num_pages + 1, self._page_size, *group.caches.first.keys.shape[2:])
            memory = torch.zeros(shape, dtype=self._engine.dtype, device=self._engine.device)
            views = [PagedKV(keys, values) for keys, values in memory]
            for index, view in zip(group.indices, views, strict=True):
                layers[index], groups[index] = view, SCRATCH_GROUP
            scratch_layers.append(PagedLayers.of(views))
        self._scratch_layers = scratch_layers
        self.caches = PagedCaches.of(layers, self._specs, tables=self._tables, groups=groups)
