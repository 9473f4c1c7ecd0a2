"""How blends share an engine's steps, on a tiny model over the caches of a CUDA backend."""

import threading
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.kv_cache_layout import KVCacheLayout

from kvblend.vllm_connector.worker.blend import Blend, State
from tests.blend.paged.paged_models import make_model
from tests.vllm_connector.worker.backend_blends import Engine, Library, tokens

ROOM = 40
LARGE, SMALL, OTHER = [tokens(100, 100), tokens(200, 30)], [tokens(300, 25)], [tokens(400, 25)]
QUESTION = tokens(500, 6)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Of the large request's passages the first is not stored."""
    library = Library(make_model("Llama"), tmp_path)
    for passage in (LARGE[1], *SMALL, *OTHER):
        library.add(passage)
    return library


@pytest.fixture
def engine(library: Library) -> Engine:
    layout = KVCacheLayout.LBNHC
    return Engine(make_model("Llama"), library, "FlashAttention", layout, paged=True, tokens_per_step=ROOM)


def add(engine: Engine, library: Library, name: str, passages: list[list[int]], ratio: float = 0.2) -> None:
    engine.add(name, library.plan(passages, ratio), library.prompt(passages, QUESTION))


def settle(engine: Engine) -> None:
    """Let everything be staged, and do no more than that."""
    while any(blend.state in (State.OPENED, State.STAGING) for blend in engine.staging()):
        engine.blends._advance()


def test_one_large_miss_does_not_hold_up_what_is_behind_it(library: Library, engine: Engine) -> None:
    """First in line, it gives up half of a step's room; the small ones behind it end in the first two steps."""
    add(engine, library, "large", LARGE)
    add(engine, library, "small", SMALL)
    add(engine, library, "other", OTHER)
    settle(engine)
    large = next(blend for blend in engine.staging() if blend.task.request_id == "large")
    left = []
    while "large" not in engine.blends.reports:
        engine.blends.step(ROOM)
        left.append(len(large.todo))
        if len(left) == 2:
            assert {"small", "other"} <= set(engine.blends.reports)
    assert left[0] >= 100 + 6 - ROOM - 6 and len(left) <= 5
    assert engine.blends.finished == {"large", "small", "other"} and not engine.blends.failed


def test_alone_in_a_step_it_may_have_all_of_it(library: Library, engine: Engine) -> None:
    add(engine, library, "large", LARGE)
    settle(engine)
    engine.blends.step(ROOM, longest=1000)
    assert engine.blends.finished == {"large"}


def test_dropped_while_it_is_staged(library: Library, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are not given back before its thread has ended; another blend goes on meanwhile."""
    gate, began = threading.Event(), threading.Event()
    bring = engine._pages.bring

    def held(context: Any, passages: Any, *, hit: int) -> dict[int, str]:
        began.set()
        assert gate.wait(20)
        return bring(context, passages, hit=hit)

    monkeypatch.setattr(engine._pages, "bring", held)
    add(engine, library, "dropped", SMALL)
    engine.blends.step(ROOM)
    engine.blends.step(ROOM)
    assert began.wait(20)
    monkeypatch.setattr(engine._pages, "bring", bring)
    add(engine, library, "other", OTHER)
    engine.blends.drop("dropped")
    while "other" not in engine.blends.finished:
        engine.blends.step(ROOM)
        assert "dropped" not in engine.blends.finished
    gate.set()
    while "dropped" not in engine.blends.finished:
        engine.blends.step(ROOM)
    assert len(engine.blends) == 0 and engine.blends.failed == {} and set(engine.blends.reports) == {"other"}


def test_states(library: Library, engine: Engine) -> None:
    """One after the other, polled; what waits is waited for by nobody."""
    add(engine, library, "blend", SMALL)
    (blend,) = engine.staging()
    seen = [blend.state]
    while len(engine.blends):
        engine.blends.step(3)
        seen.append(blend.state)
    assert list(dict.fromkeys(seen)) == [State.OPENED, State.STAGING, State.REPAIRING, State.DONE]


def test_a_blend_that_cannot_be_made(engine: Engine) -> None:
    def cannot() -> Blend:
        raise MemoryError("no memory")

    engine.blends.add("request", cannot)
    assert engine.blends.finished == {"request"} and engine.blends.failed == {"request": "the blend failed: no memory"}
