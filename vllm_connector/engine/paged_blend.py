"""A blend in the request's own blocks, by the kernels."""

import torch

from kvblend.blend.paged import PagedContextKV
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.engine.device_pages import SCRATCH_GROUP, BlendPages
from kvblend.vllm_connector.metadata import BlendTask
from kvblend.vllm_connector.worker.blend import BlendJob, PassageSource

__all__ = ["PagedBlend"]


class PagedBlend(BlendJob):
    """Only opens its passages: `PassageLoading` brings those of all new blends in, as a pass reaches their layer."""

    context: PagedContextKV
    load_context: PagedContextKV
    """Where passages go."""

    def __init__(self, task: BlendTask, caches: EngineCaches, pages: BlendPages) -> None:
        super().__init__(task, caches)
        self._pages = pages
        self._scratch: list[int] | None = None

    def reserve(self) -> bool:
        if self._scratch is None:
            self._scratch = self._pages.reserve(self.num_tokens)
        return self._scratch is not None

    def load(self, source: PassageSource) -> list[bool]:
        assert self._scratch is not None
        block_ids = self.task.block_ids
        self.context = PagedContextKV(
            self._pages.caches,
            self._pages.block_tables(block_ids, self._scratch, self.num_tokens),
            num_tokens=self.num_tokens,
            readable=torch.zeros(self.num_tokens, dtype=torch.bool),
        )
        self.load_context = self.context
        if self.num_lost_tokens > 0:
            self.load_context = self._without_hit()
        self._pages.copy_in(block_ids, self._scratch, torch.arange(self.task.start))
        self.open_files(source)
        return [file is not None for file in self.files]

    def finish(self) -> None:
        assert self._scratch is not None
        self._pages.copy_back(self.task.block_ids, self._scratch, torch.arange(self.task.start, self.num_tokens))

    def _without_hit(self) -> PagedContextKV:
        """The context, but that in the engine's own blocks of the local hit, which others share, nothing is written."""
        tables = {}
        for group, table in self.context.block_tables.items():
            tables[group] = table.clone()
            if group != SCRATCH_GROUP:
                tables[group][: self.task.start // self.context.caches.block_sizes[group]] = 0
        return PagedContextKV(self.context.caches, tables, num_tokens=self.num_tokens, readable=self.context.readable)

    def close(self) -> None:
        super().close()
        if self._scratch is not None:
            self._pages.release(self._scratch)
            self._scratch = None
