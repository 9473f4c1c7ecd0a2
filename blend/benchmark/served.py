"""One whole blend as the connector makes it: from a tier's files, staged, in a pass for each step."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kvblend.blend.benchmark.workload import Workload
from kvblend.blend.paged import PagedContextKV, PassageLoad, PlacedPassage
from kvblend.blend.passes import Pass, Rows
from kvblend.blend.selectors import ProbeSelector
from kvblend.core.identity import EMPTY_CONTEXT, token_hash
from kvblend.store import CPUTier, GPUTier, PassageKVKey, Stager, TieredStore
from kvblend.triton_kernels import StagedPassage

__all__ = ["ServedBlend"]

HOST_BUDGET = 64 << 30


class ServedBlend:
    """A context manager over a store of the workload's passages in `folder`, with a GPU tier of `gpu_bytes`."""

    def __init__(self, workload: Workload, folder: Path, *, recompute_ratio: float, gpu_bytes: int = 0) -> None:
        self._workload, self._ratio = workload, recompute_ratio
        device = workload.model.device
        gpu = GPUTier(device, budget_bytes=gpu_bytes) if gpu_bytes else None
        self._store = TieredStore([CPUTier(folder, budget_bytes=HOST_BUDGET)], gpu=gpu)
        self._stager = Stager(device, gpu=gpu)
        self._keys = []
        for number, passage in enumerate(workload.passages):
            key = PassageKVKey("model", EMPTY_CONTEXT, token_hash([number]), 0, workload.model.num_kv_heads)
            self._store.put(key, passage.payload, capture_position=0)
            self._keys.append(key)

    def run(self) -> Tensor:
        """Returns the last logits, fp32 `[1, vocabulary]`. Raises AssertionError where a passage cannot be used."""
        workload, model = self._workload, self._workload.model
        self.load()
        question = torch.arange(workload.num_context, len(workload.token_ids))
        asked = Pass.of([Rows(workload.context, workload.token_ids[workload.num_context :], question)])
        selected = ProbeSelector().select(
            torch.arange(workload.num_context), recompute_ratio=self._ratio, scores=asked.probe(model)[0].cpu()
        )
        on_device = selected.to(model.device)
        Pass.of([Rows(workload.context, workload.token_ids[on_device], selected)]).repair(model)
        answer = PagedContextKV.batch([workload.context], [question])
        return model.logits(workload.token_ids[workload.num_context :], answer.positions, answer.attend, num_last=1)

    def close(self) -> None:
        self._stager.close()
        self._store.close()

    def __enter__(self) -> "ServedBlend":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self) -> None:
        workload, files = self._workload, self._store.open_many(self._keys)
        assert len(files) == len(self._keys), "a passage is not in the store"
        opened = [files[key] for key in self._keys]

        def prepare(passages: tuple[StagedPassage, ...]) -> Callable[[int], object]:
            placed = []
            for number, staged in enumerate(passages):
                start, num_rows = number * workload.passage_tokens, staged.num_layers
                rows = None if num_rows == workload.model.num_layers else num_rows
                placed.append(PlacedPassage(staged, workload.context, start, delta=start, num_rows=rows))
            return PassageLoad(placed).layer

        self._stager.stream.wait_for_current()
        failed = self._stager.stage(opened, prepare)
        for file in opened:
            file.close()
        assert not failed, failed
