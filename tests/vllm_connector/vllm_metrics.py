"""vLLM's own logger of metrics, without an engine: what a server's /metrics has of the connector."""

import re
from pathlib import Path

from prometheus_client import REGISTRY, generate_latest
from vllm import EngineArgs
from vllm.config import KVTransferConfig
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, PrefixCacheStats, SchedulerStats

from kvblend.cli.engine import CONNECTOR
from kvblend.vllm_connector.connector_stats import ConnectorStats

__all__ = ["VLLMMetrics"]


class VLLMMetrics:
    """Registered by vLLM as it does when a server starts, in the process's one registry."""

    def __init__(self, model: Path) -> None:
        config = EngineArgs(model=str(model), kv_transfer_config=KVTransferConfig(**CONNECTOR)).create_engine_config()
        self._logger = PrometheusStatLogger(config)

    def step(self, stats: ConnectorStats | None = None) -> None:
        """An engine step has ended, of which the connector says this; it began an answer, half of whose prompt the
        connector had."""
        told = None if stats is None else stats.to_dict()
        found, iteration = PrefixCacheStats(requests=1, queries=200, hits=100), IterationStats()
        iteration.time_to_first_tokens_iter.append(0.1)
        self._logger.record(SchedulerStats(kv_connector_stats=told, connector_prefix_cache_stats=found), iteration)

    @staticmethod
    def text() -> str:
        return generate_latest(REGISTRY).decode()

    def values(self, name: str, label: str) -> dict[str, float]:
        """Of a metric of the connector's, by one of its labels."""
        lines = re.findall(rf'^vllm:kvblend_{name}{{.*\b{label}="(.*?)".*}} (\S+)$', self.text(), re.MULTILINE)
        return {said: float(value) for said, value in lines}
