"""The connector's counts by way of vLLM's own logger: tiers, passages, circuit breakers."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvblend.store import Deadline, DiskTier, TieredStore
from kvblend.store.remote import RemoteTier
from kvblend.vllm_connector.connector_stats import ConnectorStats
from tests.store.remote.servers import ValkeyServer
from tests.store.samples import make_key
from tests.store.store_samples import put
from tests.vllm_connector.vllm_metrics import VLLMMetrics

PATIENCE_S = 120.0


@pytest.fixture
def metrics(tiny_model_path: Callable[[str], Path]) -> VLLMMetrics:
    return VLLMMetrics(tiny_model_path("llama3rope"))


def test_a_breaker_of_each_process_is_told_while_it_is_open(metrics: VLLMMetrics, tmp_path: Path) -> None:
    """A remote tier that is gone is not asked by one process, and by that one again when it is back."""
    with ValkeyServer(tmp_path) as server:
        tier = RemoteTier(server.objects(), reopen_s=0.1)
        with TieredStore([DiskTier(tmp_path / "disk", budget_bytes=1 << 24)], remotes=[tier]) as store:

            def told() -> tuple[float, float]:
                store.lookup_many([make_key(1)], Deadline.after(0.2))
                stats = ConnectorStats.of(store, "scheduler")
                assert stats is not None
                stats.aggregate(ConnectorStats(data={"breakers": {str(tier): {"worker 0": 0}}}))
                metrics.step(stats)
                values = metrics.values("breaker_open", "process")
                return values["scheduler"], values["worker 0"]

            assert told() == (0, 0)
            server.kill()
            assert [told() for _ in range(3)][-1] == (1, 0) and tier.is_shunned
            metrics.step()  # of which there is nothing to say
            assert metrics.values("breaker_open", "of") == {f"redis tier at {tier.location}": 0}  # the worker's, last
            server.start()
            until = time.monotonic() + PATIENCE_S
            while told() != (0, 0):
                assert time.monotonic() < until
                time.sleep(0.05)


def test_calls_and_passages_add_up_over_processes_and_steps(metrics: VLLMMetrics, tmp_path: Path) -> None:
    with TieredStore([DiskTier(tmp_path, budget_bytes=1 << 24)]) as store:
        for number in (1, 2):
            put(store, number)
            store.lookup_many([make_key(1), make_key(2), make_key(3)])
            worker, scheduler = ConnectorStats.of(store, "worker 0"), ConnectorStats.of(store, "scheduler", {"none": 2})
            assert worker is not None and scheduler is not None and not worker.is_empty()
            metrics.step(worker.aggregate(scheduler))
        assert ConnectorStats.of(store, "worker 0") is None
    assert metrics.values("tier_keys_total", "op") == {"put": 2, "lookup": 6}
    assert metrics.values("tier_hits_total", "op") == {"put": 2, "lookup": 3}
    assert metrics.values("context_passages_total", "tier") == {"none": 4}
    assert metrics.values("breaker_open", "of") == {}


def test_the_log_has_rates_of_hits_and_what_is_not_asked() -> None:
    counts = {"num_calls": 1, "num_keys": 3, "num_hits": 2, "num_bytes": 10, "num_failures": 0, "seconds": 0.1}
    stats = ConnectorStats(data={"tiers": {"redis": {"fetch": counts}}, "passages": {"redis": 2, "none": 1}})
    stats.aggregate(ConnectorStats(data={"breakers": {"redis tier at x": {"scheduler": 1}, "s3 tier at y": {"a": 0}}}))
    said = {"redis fetch hit rate": 0.667, "redis fetch bytes": 10, "redis passages": 2, "none passages": 1}
    assert stats.reduce() == {**said, "redis tier at x not asked": 1}
    stats.reset()
    assert stats.is_empty()
