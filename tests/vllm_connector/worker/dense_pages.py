"""A blend on a dense copy of its context, in plain PyTorch: what the others are held to."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kvblend.blend import AttentionSpec, DenseContextKV
from kvblend.core.errors import CorruptPassageKVError
from kvblend.store import StoredPassageKV
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.engine.pages import PlacedKV

__all__ = ["DensePages"]


class MovableKV(Protocol):
    """What a model knows of its own KV."""

    @property
    def specs(self) -> Sequence[AttentionSpec]: ...

    def rerotate(self, kv: Tensor, *, delta: int) -> None: ...


class DensePages:
    """Contexts of their own, written to the request's blocks after the last pass."""

    def __init__(self, caches: EngineCaches, model: MovableKV) -> None:
        self._caches, self._model = caches, model

    def reserve(self, num_tokens: int) -> list[int]:
        return []

    def release(self, scratch: Sequence[int]) -> None:
        """Nothing was taken."""

    def context(
        self, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], *, num_tokens: int, hit: int
    ) -> DenseContextKV:
        data = torch.zeros(self._caches.kv_shape(num_tokens), dtype=self._caches.dtype)
        if hit:
            self._caches.read_into(data[:, :, :hit], block_ids, 0, hit)
        return DenseContextKV(self._model.specs, data, torch.zeros(num_tokens, dtype=torch.bool))

    def bring(self, context: DenseContextKV, passages: Sequence[PlacedKV], *, hit: int) -> dict[int, str]:
        failed = {}
        for place, passage in enumerate(passages):
            assert isinstance(passage.file, StoredPassageKV)
            try:
                kv = passage.file.read()
            except (CorruptPassageKVError, OSError) as error:
                failed[place] = str(error)
                continue
            self._model.rerotate(kv, delta=passage.delta)
            first, end = passage.start + passage.skipped, passage.start + passage.stop
            context.data[:, :, first:end] = kv[:, :, passage.skipped : passage.stop]
        return failed

    def copy_back(
        self, context: DenseContextKV, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], *, hit: int
    ) -> None:
        for layer, (keys, values) in zip(self._caches.layers, context.data[:, :, hit:], strict=True):
            layer.write(block_ids[layer.group], hit, keys, values)
