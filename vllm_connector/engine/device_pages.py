"""The pages that blends on a GPU work on: the engine's own, and others for layers whose blocks it frees early."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from kvblend.blend.paged import PagedCaches, PagedContextKV, PassageLoad, PlacedPassage, warm
from kvblend.store import Stager
from kvblend.triton_kernels import Codec, PagedKV, PagedLayers, StagedPassage
from kvblend.vllm_connector.engine.caches import EngineCaches, LayerGroup
from kvblend.vllm_connector.engine.move_kv import move_kv
from kvblend.vllm_connector.engine.pages import PlacedKV
from kvblend.vllm_connector.engine.scratch_pages import ScratchPages, no_room

__all__ = ["DevicePages"]

SCRATCH_GROUP = -1
"""The block tables' group of layers that have scratch pages."""


class DevicePages:
    """One `PagedCaches` for the blends of a worker.

        a layer that keeps its blocks    its own pages; a context is loaded, probed and repaired where it stays
        a layer with a sliding window    scratch pages, as many as the context has: the engine's blocks behind the
                                         window are null, and what lies in the others is copied there and back

    Passages come in by `stager` and kernels on a stream beside the engine's. `Pages` says what each method is for.
    """

    def __init__(self, caches: EngineCaches, stager: Stager, *, scratch_tokens: int) -> None:
        """`scratch_tokens`: of all contexts at a time, where a layer has a sliding window.

        Raises InvalidRequestError where the device has no memory for them.
        """
        assert caches.groups is not None
        self._engine, self._stager = caches, stager
        self._scratched = [group for group in caches.groups if not group.first.keeps_blocks]
        self._page_size = self._scratched[0].first.page_size if self._scratched else 1
        num_pages = -(-scratch_tokens // self._page_size)
        self._pages = ScratchPages(num_pages, self._page_size)
        try:
            self._allocate(num_pages)
        except RuntimeError as error:  # torch.OutOfMemoryError is one too
            raise no_room(scratch_tokens, error) from error

    def warm(self, num_heads: int, codecs: Iterable[Codec] = (Codec(),)) -> None:
        """Launch once all that encodes and blends of a model of `num_heads` query heads launch, on the null pages.

        No step of the engine then waits for Triton's just-in-time compiler. Raises what that raises.
        """
        self._engine.warm()
        warm(self._caches, num_heads, codecs)
        null = torch.zeros(1, dtype=torch.int64)
        for group, scratch_layers in zip(self._scratched, self._scratch_layers, strict=True):
            move_kv(group.caches, null, scratch_layers, null)
            move_kv(scratch_layers, null, group.caches, null)

    def reserve(self, num_tokens: int) -> list[int] | None:
        return self._pages.reserve(num_tokens) if self._scratched else []

    def release(self, scratch: Sequence[int]) -> None:
        self._pages.release(scratch)

    def context(
        self, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], *, num_tokens: int, hit: int
    ) -> PagedContextKV:
        tables = {}
        for layer, view, index in zip(self._engine.layers, self._caches.layers, self._caches.groups, strict=True):
            if index not in tables:
                pages = scratch if index == SCRATCH_GROUP else layer.pages(block_ids[index])
                table = torch.tensor(pages[: -(-num_tokens // view.block_size)])
                assert bool((table != 0).all()), f"KV cache group {index} has freed blocks of a request that is blended"
                tables[index] = table
        for group, scratch_layers, ours, theirs in self._both(block_ids, scratch, torch.arange(hit)):
            move_kv(group.caches, theirs, scratch_layers, ours)
        self._stager.stream.wait_for_current()  # what the blocks' last owner was given to do is to be over
        readable = torch.zeros(num_tokens, dtype=torch.bool)
        return PagedContextKV(self._caches, tables, num_tokens=num_tokens, readable=readable)

    def bring(self, context: PagedContextKV, passages: Sequence[PlacedKV], *, hit: int) -> dict[int, str]:
        target = _without_hit(context, hit)

        def prepare(staged: tuple[StagedPassage, ...]) -> Callable[[int], object]:
            load = PassageLoad([_placed(*own, target) for own in zip(staged, passages, strict=True)])
            return load.layer

        failed = self._stager.stage([passage.file for passage in passages], prepare)
        return {place: str(failed[place]) for place in sorted(failed)}

    def copy_back(
        self, context: PagedContextKV, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], *, hit: int
    ) -> None:
        behind = torch.arange(hit, context.num_tokens)
        for group, scratch_layers, ours, theirs in self._both(block_ids, scratch, behind):
            move_kv(scratch_layers, ours, group.caches, theirs)

    def close(self) -> None:
        self._stager.close()

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
        own = self._engine.layers
        layers, groups, scratch_layers = self._views(), [layer.group for layer in own], []
        for group in self._scratched:
            shape = (len(group.indices), 2, num_pages + 1, self._page_size, *group.caches.first.keys.shape[2:])
            memory = torch.zeros(shape, dtype=self._engine.dtype, device=self._engine.device)
            views = [PagedKV(keys, values) for keys, values in memory]
            for index, view in zip(group.indices, views, strict=True):
                layers[index], groups[index] = view, SCRATCH_GROUP
            scratch_layers.append(PagedLayers.of(views))
        self._scratch_layers = scratch_layers
        self._caches = PagedCaches.of(
            layers, [layer.spec for layer in own], tables=[layer.rotary for layer in own], groups=groups
        )


def _without_hit(context: PagedContextKV, hit: int) -> PagedContextKV:
    """The context, but that in the engine's own blocks of the local hit, which others share, nothing is written."""
    tables = {}
    for group, table in context.block_tables.items():
        tables[group] = table.clone()
        if group != SCRATCH_GROUP:
            tables[group][: hit // context.caches.block_sizes[group]] = 0
    return PagedContextKV(context.caches, tables, num_tokens=context.num_tokens)


def _placed(staged: StagedPassage, passage: PlacedKV, context: PagedContextKV) -> PlacedPassage:
    num_layers, num_rows = passage.file.header.num_layers, staged.num_layers
    return PlacedPassage(
        staged,
        context,
        passage.start,
        passage.delta,
        skipped=passage.skipped,
        left_out=passage.left_out,
        num_rows=None if num_rows == num_layers else num_rows,
    )
