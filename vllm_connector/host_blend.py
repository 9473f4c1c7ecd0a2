"""A blend in the request's own blocks, by the engine's own attention: where there is no GPU."""

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from kvblend.blend import RotaryTable
from kvblend.store import TieredStore
from kvblend.vllm_connector.blend_job import BlendJob, PassageSource
from kvblend.vllm_connector.engine_caches import EngineCaches
from kvblend.vllm_connector.host_context import HostContext
from kvblend.vllm_connector.host_loading import HostLoading, LoadedSpan, LoadingThreads
from kvblend.vllm_connector.host_pages import HostPages
from kvblend.vllm_connector.metadata import BlendTask

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
        positions = self.context.readable.nonzero()[:, 0]
        slots = {}
        for group in self.context.tables:
            slots[group] = self.context.slots(group, positions)
            if group not in self._pages.scratched:
                slots[group][positions < self.task.start] = -1  # blocks of a local hit, which others share
        self.loading = self.context.source = HostLoading(
            self._threads,
            self._pages,
            self._tables,
            [self._loaded_span(index, positions) for index in self.loaded_spans],
            slots,
            hit=self.task.start,
            read_hit=self._read_hit,
            for_probe=self.needs_probe,
        )

    def finish(self) -> None:
        assert self._scratch is not None
        self._pages.copy_back(self.task.block_ids, self._scratch, self.task.start)

    def end_loading(self) -> None:
        """Stop it, and close the files. Idempotent."""
        if self.loading is not None:
            self.loading.close()
            self.loading = self.context.source = None
        super().close()

    def close(self) -> None:
        self.end_loading()
        if self._scratch is not None:
            self._pages.release(self._scratch)
            self._scratch = None

    def _loaded_span(self, index: int, positions: Tensor) -> LoadedSpan:
        file, span = self.files[index], self.spans[index]
        assert file is not None
        skipped = self.skipped(span)
        first_row = int(torch.searchsorted(positions, span.start + skipped))
        return LoadedSpan(file, span.start - file.header.capture_position, skipped, first_row)

    def _read_hit(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._pages.read(layer, self.context.tables[self._pages.groups[layer]], self.task.start)


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
            for layer in range(loading.num_loaded, loading.num_layers):
                loading.ready(layer)

    @property
    def is_complete(self) -> bool:
        return all(loading.num_loaded == loading.num_layers for _, loading in self._jobs)

    def failures(self) -> dict[int, str]:
        """What is wrong with passages of which this rank's part cannot be used, by place in `passages`."""
        self.complete()
        failed = [loading.failed.get(place) for job, loading in self._jobs for place in range(len(job.loaded_spans))]
        return {place: str(error) for place, error in enumerate(failed) if error is not None}

    def keep(self, store: TieredStore) -> None:
        """Put aside what is corrupt; nothing is kept but in the pages."""
        for job, loading in self._jobs:
            for place in loading.failed:
                file = job.files[job.loaded_spans[place]]
                assert file is not None
                store.quarantine(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job, _ in self._jobs:
            job.end_loading()
