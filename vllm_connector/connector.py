"""KVBlendConnector: vLLM's connector interface over our two halves."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
from vllm.logger import init_logger

from kvblend.vllm_connector.connector_stats import ConnectorPromMetrics, ConnectorStats
from kvblend.vllm_connector.metadata import StepMetadata, StepResults
from kvblend.vllm_connector.scheduler import SchedulerHalf
from kvblend.vllm_connector.settings import connector_settings
from kvblend.vllm_connector.siblings import siblings_of_caller
from kvblend.vllm_connector.support import check_engine
from kvblend.vllm_connector.versions import untested
from kvblend.vllm_connector.worker import WorkerHalf

__all__ = ["KVBlendConnector"]

logger = init_logger("vllm.kvblend")
Result = TypeVar("Result")


def _contained(default: Callable[[], Any]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Log whatever a method raises and go on with `default`: an exception there ends the engine."""

    def wrap(method: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(method)
        def contained(*args: Any, **kwargs: Any) -> Result:
            try:
                return method(*args, **kwargs)
            except Exception:
                logger.exception("kvblend's %s failed; the engine goes on without it", method.__name__)
                result: Result = default()
                return result

        return contained

    return wrap


class KVBlendConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """The connector that vLLM is configured with; its methods' contracts are those of vLLM's base class.

    Loads are asynchronous: vLLM lets a blended request wait, with its blocks, until `finished_recving`, so that a
    repair can take several steps, its blocks are cached only when they are filled, and a local hit that another
    request fills in the same step is there before it is read.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        check_engine(vllm_config)
        siblings = siblings_of_caller()
        siblings.check()
        if role == KVConnectorRole.SCHEDULER and (warning := untested(vllm.__version__)) is not None:
            logger.warning(warning)
        settings = connector_settings(self._kv_transfer_config.kv_connector_extra_config or {})
        self._scheduler: SchedulerHalf | None = None
        self._worker: WorkerHalf | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = SchedulerHalf(vllm_config, kv_cache_config, settings, siblings)
        else:
            self._worker = WorkerHalf(vllm_config, kv_cache_config, settings)

    @property
    def requires_kv_delivery(self) -> bool:
        """A lost encode is only a future miss."""
        return False

    @property
    def scheduler(self) -> SchedulerHalf:
        assert self._scheduler is not None
        return self._scheduler

    @property
    def worker(self) -> WorkerHalf:
        assert self._worker is not None
        return self._worker

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """Of either side; vLLM adds them up."""
        half = self._worker if self._worker is not None else self.scheduler
        return half.take_stats()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats:
        return ConnectorStats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, *args: Any, **kwargs: Any) -> ConnectorPromMetrics:
        return ConnectorPromMetrics(*args, **kwargs)

    # scheduler side

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        self.scheduler.bind_kv_cache_manager(kv_cache_manager)

    @_contained(lambda: None)
    def on_new_request(self, request: Any) -> None:
        self.scheduler.on_new_request(request)

    @_contained(lambda: (0, False))
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        num_tokens = self.scheduler.num_new_matched_tokens(request, num_computed_tokens)
        return num_tokens, num_tokens != 0

    @_contained(lambda: None)
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self.scheduler.update_state_after_alloc(request, blocks, num_external_tokens)

    @_contained(StepMetadata)
    def build_connector_meta(self, scheduler_output: Any) -> StepMetadata:
        return self.scheduler.build_connector_meta(scheduler_output)

    @_contained(lambda: None)
    def update_connector_output(self, connector_output: Any) -> None:
        results = connector_output.kv_connector_worker_meta
        own = results if isinstance(results, StepResults) else None
        finished, failed = connector_output.finished_recving or (), connector_output.failed_recving
        self.scheduler.update_connector_output(own, finished, failed)

    @_contained(lambda: (False, None))
    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, self.scheduler.request_finished(request)

    def has_pending_push_work(self) -> bool:
        return self.scheduler.has_pending_work

    # worker side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self.worker.register_kv_caches(kv_caches)

    @_contained(lambda: None)
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Model runner V2 gives the step's batch with it, which a blend does not need: its own forward is private."""
        self.worker.load(self._metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded under a forward."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """All layers are saved at the step's end."""

    @_contained(lambda: None)
    def wait_for_save(self) -> None:
        self.worker.save(self._metadata())

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        finished, failed = self.worker.take_finished()
        return KVConnectorTransferResults(finished_recving=finished, failed_recving=failed)

    def build_connector_worker_meta(self) -> StepResults | None:
        return self.worker.take_results()

    def shutdown(self) -> None:
        for half in (self._scheduler, self._worker):
            if half is not None:
                half.shutdown()

    def _metadata(self) -> StepMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, StepMetadata)
        return metadata
