"""The connector in a vLLM worker: fills blended contexts, keeps encoded passages."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed import tensor_model_parallel_all_reduce as all_reduce
from vllm.logger import init_logger

from kvblend.blend import probe, repair
from kvblend.core.identity import token_hash
from kvblend.core.settings import Settings
from kvblend.store import PassageKVKey, TieredStore
from kvblend.vllm_connector.blend_job import BlendJob
from kvblend.vllm_connector.encode_job import EncodeJob
from kvblend.vllm_connector.engine_model import EngineModel
from kvblend.vllm_connector.fingerprint import model_fingerprint
from kvblend.vllm_connector.head_ranges import head_ranges
from kvblend.vllm_connector.host_copy import HostCopy
from kvblend.vllm_connector.metadata import EncodeTask, StepMetadata, StepResults
from kvblend.vllm_connector.model_loader import loaded_model
from kvblend.vllm_connector.paged_caches import PagedCaches
from kvblend.vllm_connector.paged_kv import PagedLayer
from kvblend.vllm_connector.passage_writer import PassageWriter
from kvblend.vllm_connector.support import check_layers

__all__ = ["WorkerHalf"]

logger = init_logger("vllm.kvblend.worker")


class WorkerHalf:
    """Runs blends first come, first served, at most `repair_tokens_per_step` tokens an engine step.

    Loads are asynchronous to vLLM: a request waits, its blocks held, while decodes of others go on between the steps
    of its repair.
    """

    def __init__(self, vllm_config: Any, kv_cache_config: Any, settings: Settings) -> None:
        self._config, self._cache_config, self._settings = vllm_config, kv_cache_config, settings
        self._store = TieredStore.from_settings(settings)
        self._writer = PassageWriter(self._store)
        self._fingerprint = model_fingerprint(vllm_config.model_config)
        self._jobs: dict[str, BlendJob] = {}
        self._encodes: dict[str, EncodeJob] = {}
        self._finished: set[str] = set()
        self._failed: set[str] = set()
        self._results = StepResults()

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Bind the model and its paged caches. Raises UnsupportedModelError where kvblend cannot blend them."""
        context = self._config.compilation_config.static_forward_context
        check_layers(kv_caches, context, self._cache_config)
        group_of = {
            name: index for index, group in enumerate(self._cache_config.kv_cache_groups) for name in group.layer_names
        }
        block_sizes = [group.kv_cache_spec.block_size for group in self._cache_config.kv_cache_groups]
        names = sorted(kv_caches, key=_layer_index)
        self._caches = PagedCaches(
            [PagedLayer(context[name], group_of[name], block_size=block_sizes[group_of[name]]) for name in names]
        )
        self._model = EngineModel(loaded_model(), names, self._config)
        self._heads = head_ranges(self._config)[get_tensor_model_parallel_rank()]

    def load(self, metadata: StepMetadata) -> None:
        """Take up new blends and do one step's share of the work."""
        for request_id in metadata.dropped:
            self._encodes.pop(request_id, None)
            if self._jobs.pop(request_id, None) is not None:
                self._finished.add(request_id)  # vLLM frees an aborted request's blocks when its load ends
        for task in metadata.blends:
            self._jobs[task.request_id] = BlendJob(task, self._caches.layers, self._model)
        if self._jobs:
            batch = self._admit()
            try:
                self._run(batch)
            except Exception as error:  # the worker's edge: whatever went wrong, vLLM can still prefill
                names = [job.task.request_id for job in batch]
                logger.exception("A blend failed; its requests are prefilled: %s", names)
                for job in batch:
                    self._failed.add(job.task.request_id)
                    self._results.failed[job.task.request_id] = f"the blend failed: {error}"
                    self._end(job)

    def save(self, metadata: StepMetadata) -> None:
        """Keep what this step computed of passages to encode; have those written that are whole."""
        for task in metadata.encodes:
            job = self._encodes.get(task.request_id)
            if job is None:
                job = self._encodes[task.request_id] = EncodeJob(task.order, self._caches)
            job.take(task)
            if task.computed_end < task.order.end:
                continue
            del self._encodes[task.request_id]
            if job.complete:
                kv = HostCopy(job.kv)
                self._writer.put(task.request_id, self._key(task), kv, capture_position=task.order.start)
            else:  # a local hit within the passage, whose hashes are salted to have none
                self._writer.fail(task.request_id, "a part of the passage was not computed for this request")

    def take_finished(self) -> tuple[set[str], set[str]]:
        """Requests whose load has ended since the last call, and those among them that failed."""
        finished, failed = self._finished, self._failed
        self._finished, self._failed = set(), set()
        return finished, failed

    def take_results(self) -> StepResults | None:
        results, self._results = self._results, StepResults()
        results.encoded = {request_id: (outcome,) for request_id, outcome in self._writer.take_results().items()}
        return results if results.reports or results.failed or results.encoded else None

    def shutdown(self) -> None:
        self._writer.close()
        self._store.close()

    def _admit(self) -> list[BlendJob]:
        """The blends of this step: from the oldest on, as many as the step's token budget holds, at least one."""
        batch: list[BlendJob] = []
        room = self._settings.repair_tokens_per_step
        for job in self._jobs.values():
            cost = job.expected_cost if job.todo is None else len(job.todo)
            if batch and cost > room:
                break
            batch.append(job)
            room -= cost
        return batch

    def _run(self, batch: Sequence[BlendJob]) -> None:
        new = [job for job in batch if job.todo is None]
        for job in new:
            loaded = job.load(self._store, self._fingerprint, self._heads)
            job.settle(self._agree(loaded))
        probed = [job for job in new if job.needs_probe]
        scores = dict.fromkeys(job.task.request_id for job in new)
        if probed:
            with _Timed(probed, "probe"):
                results = probe(self._model, [job.question_rows() for job in probed])
            scores |= {job.task.request_id: result for job, result in zip(probed, results, strict=True)}
        for job in new:
            job.select(scores[job.task.request_id])
        room, parts = self._settings.repair_tokens_per_step, []
        for job in batch:
            assert job.todo is not None
            if room > 0 and len(job.todo):
                parts.append(job.take_rows(room))
                room -= len(parts[-1].positions)
        if parts:
            with _Timed(batch, "repair"):
                repair(self._model, parts)
        for job in batch:
            if job.todo is not None and len(job.todo) == 0:
                with _Timed([job], "load"):
                    job.write()
                self._results.reports[job.task.request_id] = job.report
                self._end(job)

    def _end(self, job: BlendJob) -> None:
        self._jobs.pop(job.task.request_id, None)
        self._finished.add(job.task.request_id)

    @staticmethod
    def _agree(loaded: list[bool]) -> list[bool]:
        """A span is there only if every rank has its part."""
        ranks = get_tensor_model_parallel_world_size()
        if ranks == 1:
            return loaded
        counts = all_reduce(torch.tensor(loaded, dtype=torch.float32))
        return [bool(count == ranks) for count in counts]

    def _key(self, task: EncodeTask) -> PassageKVKey:
        order = task.order
        return PassageKVKey(
            self._fingerprint,
            token_hash(task.token_ids[: order.start]),
            token_hash(task.token_ids[order.start : order.end]),
            *self._heads,
        )


class _Timed:
    """Add the time spent inside to a step of every job's report: they all wait for it."""

    def __init__(self, jobs: Sequence[BlendJob], step: str) -> None:
        self._jobs, self._step = jobs, step
        self._clock: Callable[[], float] = time.perf_counter

    def __enter__(self) -> None:
        self._began = self._clock()

    def __exit__(self, *_: object) -> None:
        spent = (self._clock() - self._began) * 1e3
        for job in self._jobs:
            steps = job.report.steps_ms
            setattr(steps, self._step, getattr(steps, self._step) + spent)


def _layer_index(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\.(\d+)\.", name))
