"""A blend in the request's own blocks, by the kernels."""

import torch

from kvblend.blend.paged import PagedContextKV
from kvblend.vllm_connector.blend_job import BlendJob, PassageSource
from kvblend.vllm_connector.blend_pages import BlendPages
from kvblend.vllm_connector.engine_caches import EngineCaches
from kvblend.vllm_connector.metadata import BlendTask

__all__ = ["PagedBlend"]


class PagedBlend(BlendJob):
    """Only opens its passages: `PassageLoading` brings those of all new blends in, as a pass reaches their layer."""

    context: PagedContextKV

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
        self._pages.copy_in(block_ids, self._scratch, torch.arange(self.task.start))
        self.open_files(source)
        return [file is not None for file in self.files]

    def finish(self) -> None:
        assert self._scratch is not None
        self._pages.copy_back(self.task.block_ids, self._scratch, torch.arange(self.task.start, self.num_tokens))

    def close(self) -> None:
        super().close()
        if self._scratch is not None:
            self._pages.release(self._scratch)
            self._scratch = None
