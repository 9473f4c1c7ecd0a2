"""A blend in the request's own blocks, where there is no GPU."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import torch

from kvblend.blend import RotaryTable
from kvblend.store import TieredStore
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.engine.host_context import HostContext
from kvblend.vllm_connector.engine.host_loading import HostLoading, LoadedSpan, LoadingThreads, host_loading
from kvblend.vllm_connector.engine.host_pages import HostPages
from kvblend.vllm_connector.metadata import BlendTask
from kvblend.vllm_connector.worker.blend import BlendJob, PassageSource

__all__ = ["HostBlend", "HostBlendLoading"]


class RotaryModel(Protocol):
    """What a model knows of how its keys turn: each layer's table, None where they do not."""

    @property
    def rotary_tables(self) -> Sequence[RotaryTable | None]: ...


class HostBlend(BlendJob):
    """Loading begins as soon as the store's answer is known, and goes on while passes use the layers that are there."""

    context: HostContext
    loads_ahead = True

    def __init__(
        self,
        task: BlendTask,
        caches: EngineCaches,
        pages: HostPages,
        model: RotaryModel,
        threads: LoadingThreads,
    ) -> None:
        super().__init__(task, caches)
        self._pages, self._tables, self._threads = pages, model.rotary_tables, threads
        self._scratch: list[int] | None = None
        self.loading: HostLoading | None = None
        self.loaded_spans: list[int] = []
        """Which of `spans` the loading brings in, in its order."""

    def reserve(self) -> bool:
        if self._scratch is None:
            self._scratch = self._pages.reserve(self.num_tokens)
        return self._scratch is not None

    def load(self, source: PassageSource) -> list[bool]:
        assert self._scratch is not None
        block_ids = self.task.block_ids
        self.context = HostContext(
            self._pages,
            self._pages.tables(block_ids, self._scratch, self.num_tokens),
            torch.zeros(self.num_tokens, dtype=torch.bool),
        )
        self._pages.copy_in(block_ids, self._scratch, self.task.start)
        self.open_files(source)
        return [file is not None for file in self.files]

    def settle(self, loaded: Sequence[bool]) -> None:
        super().settle(loaded)
        self.loaded_spans = [index for index, file in enumerate(self.files) if file is not None]
        spans = [self._loaded_span(index) for index in self.loaded_spans]
        self.loading = host_loading(self._threads, self.context, self._tables, spans, hit=self.task.start)

    def finish(self) -> None:
        assert self._scratch is not None
        self._pages.copy_back(self.task.block_ids, self._scratch, self.task.start)

    def end_loading(self) -> None:
        """Stop it, and close the files. Idempotent."""
        if self.loading is not None:
            self.loading.close()
            self.loading = None
        super().close()

    def close(self) -> None:
        self.end_loading()
        if self._scratch is not None:
            self._pages.release(self._scratch)
            self._scratch = None

    def _loaded_span(self, index: int) -> LoadedSpan:
        file, span = self.files[index], self.spans[index]
        assert file is not None
        return LoadedSpan(file, span.start, self.skipped(span))


class HostBlendLoading:
    """The loadings of an engine step's new blends, as a pass over all of them sees them."""

    def __init__(self, jobs: Sequence[HostBlend]) -> None:
        self._jobs = [(job, job.loading) for job in jobs if job.loading is not None]
        self.passages: list[tuple[BlendJob, int]] = [(job, index) for job in jobs for index in job.loaded_spans]
        """(job, which of its spans), of those that are there."""

    def layer(self, layer: int) -> None:
        """Wait for a layer; nothing in a pass that is not the first."""
        for _, loading in self._jobs:
            loading.ready(layer)

    def complete(self) -> None:
        """Load whatever no pass has."""
        for _, loading in self._jobs:
            loading.ready(loading.num_layers - 1)

    @property
    def is_complete(self) -> bool:
        return all(loading.is_complete for _, loading in self._jobs)

    def failures(self) -> dict[int, str]:
        """What is wrong with passages of which this rank's part cannot be used, by place in `passages`."""
        self.complete()
        failed = [own.get(place) for job, own in self._failed() for place in range(len(job.loaded_spans))]
        return {place: reason for place, reason in enumerate(failed) if reason is not None}

    def keep(self, store: TieredStore) -> None:
        """Put aside what is corrupt; nothing is kept but in the pages."""
        for job, failed in self._failed():
            for place in failed:
                file = job.files[job.loaded_spans[place]]
                assert file is not None
                store.quarantine(file)

    def _failed(self) -> list[tuple[HostBlend, Mapping[int, str]]]:
        return [(job, loading.failed) for job, loading in self._jobs]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job, _ in self._jobs:
            job.end_loading()
