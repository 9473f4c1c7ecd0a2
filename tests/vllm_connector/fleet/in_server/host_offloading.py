"""vLLM's CPU offload on a machine without a GPU: its own scheduler, manager and metrics, with plain copies."""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

__all__ = ["HostOffloadingSpec"]


class HostOffloadingSpec(CPUOffloadingSpec):  # type: ignore[misc]
    """Named in a connector's configuration; a chunk is a block."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        assert self.blocks_per_chunk == 1
        return _HostWorker([each.tensor for each in kv_caches.tensors], self.num_chunks)


class _HostWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies at once, within the engine's step."""

    def __init__(self, blocks: Sequence[torch.Tensor], num_chunks: int) -> None:
        """`blocks`: of each cache `[num_blocks, bytes]`."""
        self._blocks = blocks
        self._chunks = [each.new_zeros((num_chunks, *each.shape[1:])) for each in blocks]
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, self._blocks, src_spec.block_ids, self._chunks, dst_spec.block_ids)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, self._chunks, src_spec.block_ids, self._blocks, dst_spec.block_ids)

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Nothing is under way."""

    def _copy(self, job_id: int, sources: Any, source_ids: Any, targets: Any, target_ids: Any) -> bool:
        assert len(source_ids) == len(target_ids)
        size = 0
        for source, target in zip(sources, targets, strict=True):
            for source_id, target_id in zip(source_ids, target_ids, strict=True):
                target[target_id] = source[source_id]
                size += source[source_id].nbytes
        self._finished.append(TransferResult(job_id=job_id, success=True, transfer_size=size, transfer_time=1e-6))
        return True
