"""The passages of an engine step's new blends, on their way into the requests' blocks."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from kvblend.blend.paged import PassageLoad, PlacedPassage
from kvblend.store import OpenPassageKV, Stager, TieredStore
from kvblend.vllm_connector.engine.paged_blend import PagedBlend
from kvblend.vllm_connector.worker.blend import BlendJob

__all__ = ["PassageLoading"]


class PassageLoading:
    """Brings a layer of all passages in when a pass reaches it, while the layers behind it are still being read.

        with PassageLoading(jobs, stager) as loading:
            probe(..., before_layer=loading.layer)      or a repair; the first pass that runs
            loading.complete()
            lost = loading.failures()                   of these a pass has read KV that is not right

    What a GPU tier has is taken from where it lies. Construction raises ValueError where a passage would move further
    than the model's rotary table reaches.
    """

    def __init__(self, jobs: Sequence[PagedBlend], stager: Stager) -> None:
        self.passages: list[tuple[BlendJob, int]] = []
        """(job, which of its spans), of those that are there."""
        self._num_loaded = 0
        files = list[OpenPassageKV]()
        placed: list[tuple[PagedBlend, int]] = []
        for job in jobs:
            for index, file in enumerate(job.files):
                if file is not None:
                    placed.append((job, index))
                    files.append(file)
        self.passages += placed
        self._staging = None
        if not files:
            return
        self._staging = stager.stage(files)
        try:
            self._load = PassageLoad([self._placed(place, *passage) for place, passage in enumerate(placed)])
        except BaseException:
            self._staging.close()
            raise

    def layer(self, layer: int) -> None:
        """Load one layer, behind its arrival; nothing in a pass that is not the first."""
        if self._staging is None or layer < self._num_loaded:
            return
        self._staging.ready(layer)
        self._load.layer(layer)
        self._num_loaded = layer + 1

    def complete(self) -> None:
        """Load whatever no pass has."""
        if self._staging is not None:
            for layer in range(self._num_loaded, self._staging.num_layers):
                self.layer(layer)

    @property
    def is_complete(self) -> bool:
        return self._staging is None or self._num_loaded == self._staging.num_layers

    def failures(self) -> dict[int, str]:
        """What is wrong with passages of which this rank's part cannot be used, by place in `passages`."""
        if self._staging is None:
            return {}
        return {place: str(self._staging.failed[place]) for place in sorted(self._staging.wait())}

    def keep(self, store: TieredStore) -> None:
        """Leave what came from host memory in the GPU tier, where there is one, and put aside what is corrupt."""
        if self._staging is None:
            return
        for place in self._staging.failed:
            store.quarantine(self._staging.files[place])
        self._staging.keep()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._staging is not None:
            self._staging.close()

    def _placed(self, place: int, job: PagedBlend, index: int) -> PlacedPassage:
        assert self._staging is not None
        staged = self._staging.passages[place]
        span, position = job.spans[index], self._staging.files[place].header.capture_position
        return PlacedPassage(
            staged,
            job.load_context,
            span.start,
            span.start - position,
            skipped=job.skipped(span),
            num_rows=None if staged.num_layers == self._staging.num_layers else staged.num_layers,
        )
