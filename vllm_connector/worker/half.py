"""The connector in a vLLM worker: fills blended contexts, keeps encoded passages."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from platformdirs import user_cache_path
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed import tensor_model_parallel_all_reduce as all_reduce

from kvblend.core.identity import token_hash
from kvblend.core.settings import Settings
from kvblend.host_kernels import host_kernels
from kvblend.store import PassageKVKey, Stager, TieredStore
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.engine.device_pages import BlendPages
from kvblend.vllm_connector.engine.host_blend import HostBlend, HostBlendLoading
from kvblend.vllm_connector.engine.host_loading import LoadingThreads
from kvblend.vllm_connector.engine.host_pages import HostPages
from kvblend.vllm_connector.engine.kv_groups import keeps_blocks, layer_spec
from kvblend.vllm_connector.engine.layer_cache import PagedLayer
from kvblend.vllm_connector.engine.model import EngineModel
from kvblend.vllm_connector.engine.model_loader import loaded_model
from kvblend.vllm_connector.engine.paged_blend import PagedBlend
from kvblend.vllm_connector.engine.passage_loading import PassageLoading
from kvblend.vllm_connector.fingerprint import model_fingerprint
from kvblend.vllm_connector.head_ranges import head_ranges
from kvblend.vllm_connector.metadata import BlendTask, EncodeTask, StepMetadata, StepResults
from kvblend.vllm_connector.support import check_layers
from kvblend.vllm_connector.worker.blend import BlendJob, PassageSource
from kvblend.vllm_connector.worker.blends import BeginLoading, BlendQueue
from kvblend.vllm_connector.worker.clock import StepClock
from kvblend.vllm_connector.worker.encode import EncodeJob
from kvblend.vllm_connector.worker.host_copy import HostCopy
from kvblend.vllm_connector.worker.passage_writer import PassageWriter

__all__ = ["WorkerHalf"]


class WorkerHalf:
    """Runs a step's share of blends and encodes between two forwards of the engine.

    Loads are asynchronous to vLLM: a request waits, its blocks held, while decodes of others go on between the steps
    of its repair.
    """

    def __init__(self, vllm_config: Any, kv_cache_config: Any, settings: Settings) -> None:
        self._config, self._cache_config, self._settings = vllm_config, kv_cache_config, settings
        self._fingerprint = model_fingerprint(vllm_config.model_config)
        self._encodes: dict[str, EncodeJob] = {}
        self._job: Callable[[BlendTask], BlendJob]
        self._closing = ExitStack()

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Bind the model and its paged caches, and open the store.

        Raises UnsupportedModelError where kvblend cannot blend them, InvalidRequestError for a store that cannot be.
        """
        context = self._config.compilation_config.static_forward_context
        check_layers(kv_caches, context, self._cache_config)
        names = sorted(kv_caches, key=_layer_index)
        self.caches = EngineCaches(_layers(names, context, self._cache_config))
        self.model = EngineModel(loaded_model(), names, self._config)
        self._heads = head_ranges(self._config)[get_tensor_model_parallel_rank()]
        uses_kernels = self.caches.groups is not None
        self._store = TieredStore.from_settings(self._settings, self.caches.device if uses_kernels else None)
        self._closing.callback(self._store.close)
        loading = self._use_kernels(self._store) if uses_kernels else self._use_engine()
        self._writer = PassageWriter(self._store)
        self._closing.callback(self._writer.close)
        self.queue = BlendQueue(
            self.model,
            PassageSource(self._store, self._fingerprint, self._heads),
            StepClock(self.caches.device),
            loading=loading,
            tokens_per_step=self._settings.repair_tokens_per_step,
            agree=self._agree,
        )

    def _use_kernels(self, store: TieredStore) -> BeginLoading:
        """Blend by our kernels."""
        pages = BlendPages(self.caches, self.model.specs, self.model.rotary_tables)
        stager = Stager(self.caches.device, gpu=store.gpu)
        self._closing.callback(stager.close)
        self._job = lambda task: PagedBlend(task, self.caches, pages)
        return lambda jobs: PassageLoading(jobs, stager)

    def _use_engine(self) -> BeginLoading:
        """Blend by the kernels for CPUs; by the engine's own attention and plain PyTorch where they cannot be had."""
        specs = [layer_spec(group.kv_cache_spec) for group in self._cache_config.kv_cache_groups]
        kernels = host_kernels(user_cache_path("kvblend") / "kernels")
        pages = HostPages(self.caches.layers, self.model.specs, specs, self._config, kernels)
        threads = LoadingThreads()
        self._closing.callback(threads.close)
        self._job = lambda task: HostBlend(task, self.caches, pages, self.model, threads)
        return HostBlendLoading

    def load(self, metadata: StepMetadata) -> None:
        """Take up new blends and do one step's share of the work."""
        for request_id in metadata.dropped:
            self._encodes.pop(request_id, None)
            self.queue.drop(request_id)
        for task in metadata.blends:
            self.queue.add(self._job(task))
        self.queue.step()

    def save(self, metadata: StepMetadata) -> None:
        """Keep what this step computed of passages to encode; have those written that are whole."""
        for task in metadata.encodes:
            job = self._encodes.get(task.request_id)
            if job is None:
                job = self._encodes[task.request_id] = EncodeJob(task.order, self.caches)
            job.take(task)
            if task.computed_end < task.order.end:
                continue
            del self._encodes[task.request_id]
            if job.complete:
                kv = HostCopy(job.kv)
                self._writer.put(task.request_id, self._key(task), kv, capture_position=task.order.start)
            else:  # a local hit within the passage, whose hashes are salted to have none
                self._writer.fail(task.request_id, "a part of the passage was not computed for this request")

    @property
    def num_encodes(self) -> int:
        """Passages of which a part was kept."""
        return len(self._encodes)

    def take_finished(self) -> tuple[set[str], set[str]]:
        """Requests whose load has ended since the last call, and those among them that failed."""
        finished, self.queue.finished = self.queue.finished, set()
        return finished, finished & set(self.queue.failed)

    def take_results(self) -> StepResults | None:
        """What has come about since the last call; called after `take_finished`."""
        encoded = {request_id: (outcome,) for request_id, outcome in self._writer.take_results().items()}
        results = StepResults(self.queue.reports, self.queue.failed, encoded)
        self.queue.reports, self.queue.failed = {}, {}
        return results if results.reports or results.failed or results.encoded else None

    def shutdown(self) -> None:
        self._closing.close()

    def _agree(self, here: list[bool]) -> list[bool]:
        """What holds on every rank."""
        ranks = get_tensor_model_parallel_world_size()
        if ranks == 1 or not here:
            return here
        counts = all_reduce(torch.tensor(here, dtype=torch.float32, device=self.caches.device))
        return [count == ranks for count in counts.tolist()]

    def _key(self, task: EncodeTask) -> PassageKVKey:
        order = task.order
        return PassageKVKey(
            self._fingerprint,
            token_hash(task.token_ids[: order.start]),
            token_hash(task.token_ids[order.start : order.end]),
            *self._heads,
        )


def _layers(names: list[str], context: Any, kv_cache_config: Any) -> list[PagedLayer]:
    """Each layer's pages, by the KV cache group that it is in."""
    layers = {}
    for index, group in enumerate(kv_cache_config.kv_cache_groups):
        spec = group.kv_cache_spec
        for name in set(group.layer_names) & set(names):
            layers[name] = PagedLayer(context[name], index, block_size=spec.block_size, keeps_blocks=keeps_blocks(spec))
    return [layers[name] for name in names]


def _layer_index(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\.(\d+)\.", name))
