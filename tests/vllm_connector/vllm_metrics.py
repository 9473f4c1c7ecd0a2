"""vLLM's own logger of metrics, without an engine: what a server's /metrics has of the connector."""

import re
from pathlib import Path

from prometheus_client import REGISTRY, generate_latest
from vllm import EngineArgs
from vllm.config import KVTransferConfig
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from kvblend.cli.engine import CONNECTOR
from kvblend.vllm_connector.connector_stats import ConnectorStats

__all__ = ["VLLMMetrics"]


class VLLMMetrics:
    """Registered by vLLM as it does when a server starts, in the process's one registry."""

    def __init__(self, model: Path) -> None:
        config = EngineArgs(model=str(model), kv_transfer_config=KVTransferConfig(**CONNECTOR)).create_engine_config()
        self._logger = PrometheusStatLogger(config)

    def step(self, stats: ConnectorStats | None = None, iteration: IterationStats | None = None) -> None:
        """An engine step has ended, of which the connector says this."""
        step = SchedulerStats(kv_connector_stats=stats.to_dict() if stats is not None else None)
        self._logger.record(step, iteration)

    @staticmethod
    def text() -> str:
        return generate_latest(REGISTRY).decode()

    def values(self, name: str, label: str) -> dict[str, float]:
        """Of a metric of the connector's, by one of its labels."""
        lines = re.findall(rf'^vllm:kvblend_{name}{{.*\b{label}="(.*?)".*}} (\S+)$', self.text(), re.MULTILINE)
        return {said: float(value) for said, value in lines}
