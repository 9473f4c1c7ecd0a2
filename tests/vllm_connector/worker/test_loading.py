"""Passages are computed anew where that is the faster way: what measurements tell, and a blend that follows it."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.kv_cache_layout import KVCacheLayout

from kvblend.vllm_connector.worker import loading
from kvblend.vllm_connector.worker.loading import MIN_LOADS, LoadingController
from tests.blend.paged.paged_models import make_model
from tests.vllm_connector.worker.backend_blends import Engine, Library, tokens

PASSAGES, QUESTION = [tokens(300, 25), tokens(200, 30)], tokens(500, 6)


def measured(load_s: float, repair_s: float, *, num_loads: int = MIN_LOADS) -> LoadingController:
    """Of 100 tokens from disk, some from memory, and 50 repaired."""
    controller = LoadingController()
    for _ in range(num_loads):
        controller.loaded({"disk": 100, "cpu": 20}, load_s)
    controller.repaired(50, repair_s)
    return controller


def test_a_tier_is_passed_over_where_loading_takes_clearly_longer() -> None:
    assert measured(load_s=12.0, repair_s=1.0).too_slow() == {"disk"}
    assert measured(load_s=2.5, repair_s=1.0).too_slow() == set(), "a twentieth slower"
    assert measured(load_s=0.1, repair_s=1.0).too_slow() == set()


def test_nothing_is_told_from_little() -> None:
    assert measured(load_s=12.0, repair_s=1.0, num_loads=MIN_LOADS - 1).too_slow() == set()
    controller = LoadingController()
    for _ in range(MIN_LOADS):
        controller.loaded({"disk": 100, "cpu": 90}, 100.0)  # whose time it was is not known
        controller.loaded({}, 1.0)
    controller.repaired(50, 0.001)
    controller.repaired(0, 1.0)
    assert controller.too_slow() == set()


def test_a_slow_tier_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(loading, "time", SimpleNamespace(monotonic=lambda: now))
    controller = measured(load_s=12.0, repair_s=1.0)
    assert controller.too_slow() == {"disk"}
    now += loading.RETRY_S - 0.1
    assert controller.too_slow() == {"disk"}
    now += 0.2
    assert [controller.too_slow() for _ in range(2)] == [set(), {"disk"}], "one blend tries it"
    for _ in range(20):
        controller.loaded({"disk": 100}, 0.1)
    assert controller.too_slow() == set(), "it has become faster"


def test_a_blend_computes_what_takes_longer_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk tier's files come late; the report says which passages were passed over. The preamble is loaded."""
    library = Library(make_model("Llama"), tmp_path)
    for passage in PASSAGES:
        library.add(passage)
    library.source = replace(library.source, loading=LoadingController())
    engine = Engine(make_model("Llama"), library, "FlashAttention", KVCacheLayout.LBNHC, paged=True)
    bring = engine._pages.bring

    def late(context: Any, passages: Any, *, hit: int) -> dict[int, str]:
        time.sleep(1.0)
        return bring(context, passages, hit=hit)

    monkeypatch.setattr(engine._pages, "bring", late)
    reports = []
    for number in range(MIN_LOADS + 1):
        name = f"request {number}"
        engine.add(name, library.plan(PASSAGES, 0.5), library.prompt(PASSAGES, QUESTION))
        while name not in engine.blends.reports:
            engine.step()
        reports.append(engine.blends.reports[name])
    assert not engine.blends.failed
    for report in reports[:MIN_LOADS]:
        assert [(own.tier, own.passed_over) for own in report.passages] == [("disk", None)] * 2
    last = reports[-1]
    assert [(own.tier, own.passed_over) for own in last.passages] == [(None, "disk")] * 2
    assert (last.exact_tokens, last.reused_tokens, last.missed_passages) == (len(library.preamble), 0, 2)
    assert last.recomputed_tokens == sum(map(len, PASSAGES))
