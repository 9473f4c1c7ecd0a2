"""A blend on a dense copy of its context, in plain PyTorch: what the others are held to."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from kvblend.blend import AttentionSpec, DenseContextKV
from kvblend.core.errors import CorruptPassageKVError
from kvblend.store import TieredStore
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.metadata import BlendTask
from kvblend.vllm_connector.worker.blend import BlendJob, PassageSource

__all__ = ["DenseBlend", "NoLoading"]


class MovableKV(Protocol):
    """What a model knows of its own KV."""

    @property
    def specs(self) -> Sequence[AttentionSpec]: ...

    def rerotate(self, kv: Tensor, *, delta: int) -> None: ...


class DenseBlend(BlendJob):
    """Loads the whole context before the first pass, and writes it to the request's blocks after the last."""

    context: DenseContextKV

    def __init__(self, task: BlendTask, caches: EngineCaches, model: MovableKV) -> None:
        super().__init__(task, caches)
        self._model = model

    def load(self, source: PassageSource) -> list[bool]:
        data = torch.zeros(self.caches.kv_shape(self.num_tokens), dtype=self.caches.dtype, device=self.caches.device)
        self.context = DenseContextKV(self._model.specs, data, torch.zeros(self.num_tokens, dtype=torch.bool))
        if self.task.start:
            self.caches.read_into(data[:, :, : self.task.start], self.task.block_ids, 0, self.task.start)
        self.open_files(source)
        try:
            return [self._read(index, source) for index in range(len(self.spans))]
        finally:
            self.close()

    def finish(self) -> None:
        for index, layer in enumerate(self.caches.layers):
            keys, values = self.context.data[index, :, self.task.start :]
            layer.write(self.task.block_ids[layer.group], self.task.start, keys, values)

    def _read(self, index: int, source: PassageSource) -> bool:
        file, span = self.files[index], self.spans[index]
        if file is None:
            return False
        try:
            kv = file.read()
        except (CorruptPassageKVError, OSError) as error:
            self.note_lost(index, error)
            source.store.quarantine(file)
            return False
        self._model.rerotate(kv, delta=span.start - file.header.capture_position)
        skipped = self.skipped(span)
        self.context.data[:, :, span.start + skipped : span.end] = kv[:, :, skipped:]
        return True


class NoLoading(nullcontext[Any]):
    """That of jobs whose `load` has brought in everything."""

    is_complete = True

    def __init__(self, jobs: Sequence[BlendJob]) -> None:
        super().__init__(self)
        self.passages: list[tuple[BlendJob, int]] = []

    def layer(self, layer: int) -> None:
        """All layers are there."""

    def complete(self) -> None:
        """All layers are there."""

    def failures(self) -> dict[int, str]:
        return {}

    def keep(self, store: TieredStore) -> None:
        """What was corrupt was put aside at once."""
