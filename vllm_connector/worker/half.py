"""The connector in a vLLM worker: fills blended contexts, keeps encoded passages."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from platformdirs import user_cache_path
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.logger import init_logger

from kvblend.core.settings import Settings
from kvblend.host_kernels import host_kernels
from kvblend.store import Stager, TieredStore
from kvblend.store.codecs import codec_of, codec_spec
from kvblend.triton_kernels import Codec
from kvblend.vllm_connector.connector_stats import ConnectorStats
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.engine.device_pages import DevicePages
from kvblend.vllm_connector.engine.host_pages import HostPages
from kvblend.vllm_connector.engine.kv_groups import keeps_blocks, layer_spec
from kvblend.vllm_connector.engine.layer_cache import LayerCache
from kvblend.vllm_connector.engine.model import EngineModel
from kvblend.vllm_connector.engine.model_loader import loaded_model
from kvblend.vllm_connector.engine.pages import Pages
from kvblend.vllm_connector.engine.ranks import Ranks
from kvblend.vllm_connector.fingerprint import model_fingerprint
from kvblend.vllm_connector.head_ranges import head_ranges
from kvblend.vllm_connector.metadata import StepMetadata, StepResults
from kvblend.vllm_connector.support import check_layers
from kvblend.vllm_connector.worker.blend import Blend
from kvblend.vllm_connector.worker.blends import REST_S, Blends
from kvblend.vllm_connector.worker.clock import PassClock
from kvblend.vllm_connector.worker.encodes import Encodes
from kvblend.vllm_connector.worker.loading import LoadingController
from kvblend.vllm_connector.worker.passage_writer import PassageWriter
from kvblend.vllm_connector.worker.stager import PassageSource

__all__ = ["WorkerHalf"]

logger = init_logger("vllm.kvblend.worker")

STAGING_THREADS = 4
"""Blends whose passages come in at the same time: one on a slow disk does not hold up the others."""


class WorkerHalf:
    """Runs a step's share of blends and encodes between two forwards of the engine.

    Loads are asynchronous to vLLM: a request waits, its blocks held, while decodes of others go on between the steps
    of its repair.
    """

    def __init__(self, vllm_config: Any, kv_cache_config: Any, settings: Settings) -> None:
        self._config, self._cache_config, self._settings = vllm_config, kv_cache_config, settings
        self._fingerprint = model_fingerprint(vllm_config.model_config)
        self._closing = ExitStack()

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Bind the model and its paged caches, and open the store.

        Raises UnsupportedModelError where kvblend cannot blend them, InvalidRequestError for a store that cannot be.
        """
        context = self._config.compilation_config.static_forward_context
        check_layers(kv_caches, context, self._cache_config)
        names = sorted(kv_caches, key=_layer_index)
        ranks = Ranks()
        self.model = EngineModel(loaded_model(), names, self._config, ranks)
        self.caches = EngineCaches(_layers(names, context, self._cache_config, self.model))
        heads = head_ranges(self._config)[get_tensor_model_parallel_rank()]
        uses_kernels = self.caches.groups is not None
        store = TieredStore.from_settings(self._settings, self.caches.device if uses_kernels else None)
        self._store = store
        self._closing.callback(store.close)
        self._pages = self._device_pages(store) if uses_kernels else self._host_pages()
        threads = ThreadPoolExecutor(STAGING_THREADS, thread_name_prefix="kvblend-staging")
        self._closing.callback(threads.shutdown, cancel_futures=True)
        self._writer = PassageWriter(store)
        self._closing.callback(self._writer.close)
        self.encodes = Encodes(self.caches, self._writer, self._fingerprint, heads)
        loading = LoadingController() if self._settings.loading == "auto" else None
        source = PassageSource(store, self._fingerprint, heads, threads, self._settings.remote_deadline, loading)
        self.blends = Blends(self.model, source, PassClock(self.caches.device), ranks)

    def _device_pages(self, store: TieredStore) -> Pages:
        pages = DevicePages(self.caches, Stager(self.caches.device, gpu=store.gpu), scratch_tokens=self._scratch_tokens)
        self._closing.callback(pages.close)
        if self.caches.device.type == "cuda":  # Triton's interpreter compiles nothing
            began = time.perf_counter()
            layer = self.caches.layers[0].layer
            stored = codec_of(codec_spec(self._settings.codec, layer.head_size)).staged_as
            pages.warm(layer.num_heads, {Codec(), stored})
            logger.info("Compiled the kernels of encodes and blends in %.1f s", time.perf_counter() - began)
        return pages

    def _host_pages(self) -> Pages:
        """By the kernels for CPUs; by the engine's own attention and plain PyTorch where they cannot be had."""
        specs = [layer_spec(group.kv_cache_spec) for group in self._cache_config.kv_cache_groups]
        kernels = host_kernels(user_cache_path("kvblend") / "kernels")
        pages = HostPages(self.caches.layers, specs, self._config, kernels, scratch_tokens=self._scratch_tokens)
        self._closing.callback(pages.close)
        return pages

    @property
    def _scratch_tokens(self) -> int:
        longest: int = self._config.model_config.max_model_len
        return min(self._settings.scratch_tokens, longest)

    def load(self, metadata: StepMetadata) -> None:
        """Take up new blends and do one step's share of the work. Where that raises, vLLM prefills them all.

        A step that runs tokens of other requests is held up by as many as the setting says; one that runs none may
        do as much for one blend as vLLM would prefill in a step.
        """
        try:
            self._load(metadata)
        except Exception as error:
            logger.exception("A step's blends failed")
            self.blends.give_up([task.request_id for task in metadata.blends], f"the step failed: {error}")

    def _load(self, metadata: StepMetadata) -> None:
        for request_id in metadata.dropped:
            self.encodes.drop(request_id)
            self.blends.drop(request_id)
        for request_id, reason in metadata.refused.items():
            self.blends.refuse(request_id, reason)
        for task in metadata.blends:
            self.blends.add(task.request_id, partial(Blend, task, self.caches, self._pages))
        room = longest = self._settings.repair_tokens_per_step
        if not metadata.num_scheduled_tokens:
            longest = max(room, self._config.scheduler_config.max_num_batched_tokens)
            self.blends.rest()
            if not len(self.blends):
                self._writer.rest(REST_S)
        self.blends.step(room, longest=longest)

    def save(self, metadata: StepMetadata) -> None:
        """Keep what this step computed of passages to encode; have those written that are whole."""
        for task in metadata.encodes:
            self.encodes.take(task)

    def take_finished(self) -> tuple[set[str], set[str]]:
        """Requests whose load has ended since the last call, and those among them that failed."""
        finished, self.blends.finished = self.blends.finished, set()
        return finished, finished & set(self.blends.failed)

    def take_results(self) -> StepResults | None:
        """What has come about since the last call; called after `take_finished`."""
        encoded = {request_id: (outcome,) for request_id, outcome in self.encodes.take_results().items()}
        results = StepResults(self.blends.reports, self.blends.failed, encoded, self.blends.steps)
        self.blends.reports, self.blends.failed, self.blends.steps = {}, {}, {}
        return results if results.reports or results.failed or results.encoded else None

    def take_stats(self) -> ConnectorStats | None:
        """What was counted since the last call."""
        return ConnectorStats.of(self._store, f"worker {self._config.parallel_config.rank}")

    def shutdown(self) -> None:
        self._closing.close()


def _layers(names: list[str], context: Any, kv_cache_config: Any, model: EngineModel) -> list[LayerCache]:
    """Each layer's cache, by the KV cache group that it is in."""
    specs = {
        name: (index, group.kv_cache_spec)
        for index, group in enumerate(kv_cache_config.kv_cache_groups)
        for name in group.layer_names
    }
    layers = []
    for name, attention, rotary in zip(names, model.specs, model.rotary_tables, strict=True):
        group, spec = specs[name]
        layers.append(
            LayerCache(
                context[name],
                group,
                attention,
                rotary,
                block_size=spec.block_size,
                keeps_blocks=keeps_blocks(spec),
            )
        )
    return layers


def _layer_index(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\.(\d+)\.", name))
