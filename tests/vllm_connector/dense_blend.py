"""A blend on a dense copy of its context, in plain PyTorch: where there is no GPU."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kvblend.blend import AttentionSpec, DenseContextKV
from kvblend.core.errors import CorruptPassageKVError
from kvblend.vllm_connector.blend_job import BlendJob, PassageSource
from kvblend.vllm_connector.engine_caches import EngineCaches
from kvblend.vllm_connector.metadata import BlendTask

__all__ = ["DenseBlend"]


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
