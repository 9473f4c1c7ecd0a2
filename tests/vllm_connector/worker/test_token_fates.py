"""What a blend tells of each of its tokens, beside what it counts and what it repairs."""

from pathlib import Path

import pytest
from vllm.v1.kv_cache_layout import KVCacheLayout

from kvblend.core.report import BlendReport, TokenReport
from tests.blend.paged.paged_models import make_model
from tests.vllm_connector.worker.backend_blends import Engine, Library, tokens

FIRST, MISSING, LAST = tokens(100, 60), tokens(200, 30), tokens(300, 25)
QUESTION = tokens(500, 6)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """The second passage is not stored."""
    library = Library(make_model("Llama"), tmp_path)
    library.add(FIRST)
    library.add(LAST)
    return library


def blend(library: Library, ratio: float, *, start: int = 0, report_tokens: bool = True) -> BlendReport:
    passages = [FIRST, MISSING, LAST]
    engine = Engine(make_model("Llama"), library, "FlashAttention", KVCacheLayout.LBNHC, paged=True)
    plan, prompt = library.plan(passages, ratio), library.prompt(passages, QUESTION)
    engine.add("one", plan, prompt, start=start, report_tokens=report_tokens)
    return engine.run()[0]["one"]


def fates_of(report: BlendReport) -> list[str]:
    assert report.tokens is not None
    return [fate for fate, count in report.tokens.fates for _ in range(count)]


@pytest.mark.parametrize("start", [0, 32])
def test_each_token_has_the_fate_that_is_counted(library: Library, start: int) -> None:
    """Exact: the preamble's 20 tokens, or the 32 of a local hit; the missing passage is fresh, and only it."""
    report = blend(library, 0.2, start=start)
    fates = fates_of(report)
    assert len(fates) == report.context_tokens == 20 + 60 + 30 + 25
    assert fates[: max(start, 20)] == ["exact"] * max(start, 20) and fates.count("exact") == report.exact_tokens
    assert fates[80:110] == ["fresh"] * 30 and fates.count("fresh") == 30
    assert fates.count("recomputed") == report.selected_tokens > 0
    assert fates.count("reused") + fates.count("recomputed") == report.reused_tokens


def test_the_tokens_recomputed_are_those_that_the_probe_scored_highest(library: Library) -> None:
    report = blend(library, 0.2)
    assert report.tokens is not None
    fates, scores = fates_of(report), report.tokens.scores
    assert [score is not None for score in scores] == [fate in ("reused", "recomputed") for fate in fates]
    by_fate = {
        fate: [score for score, own in zip(scores, fates, strict=True) if own == fate and score is not None]
        for fate in ("reused", "recomputed")
    }
    assert min(by_fate["recomputed"]) >= max(by_fate["reused"])


@pytest.mark.parametrize(("ratio", "fate"), [(0.0, "reused"), (1.0, "recomputed")])
def test_without_a_probe_there_are_no_scores(library: Library, ratio: float, fate: str) -> None:
    report = blend(library, ratio)
    assert report.tokens is not None and report.tokens.scores == []
    assert {fate for fate in fates_of(report)[20:80]} == {fate}


def test_nothing_is_told_that_was_not_asked_for(library: Library) -> None:
    assert blend(library, 0.2, report_tokens=False).tokens is None


def test_what_vllm_prefills_behind_is_fresh() -> None:
    tokens = TokenReport.of(["exact", "exact", "reused"], [None, None, 0.5])
    assert tokens.fates == [("exact", 2), ("reused", 1)]
    assert tokens.longer(2).fates == [("exact", 2), ("reused", 1), ("fresh", 2)]
    assert tokens.longer(2).scores == [None, None, 0.5, None, None]
    assert TokenReport.of(["exact"]).longer(1).scores == []
