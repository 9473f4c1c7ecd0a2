"""The service under load: what is asked of it, when, and what is measured of the real one."""

import gzip
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from kvblend.cli.bench.load_table import load_tables
from kvblend.cli.engine import free_port
from kvblend.core.errors import InvalidRequestError, KVBlendError
from kvblend.core.report import BlendReport
from kvblend.eval.bench.load_bystanders import bystanders
from kvblend.eval.bench.load_client import Answer, load_client
from kvblend.eval.bench.load_measured import Measured, hit_rate, load_row, percentile
from kvblend.eval.bench.load_prompts import TracePrompts, distinct_documents
from kvblend.eval.bench.load_run import LoadRun
from kvblend.eval.bench.load_texts import PassageTexts, bystander_text, chars_per_token, library_text
from kvblend.eval.bench.load_traffic import ClosedLoop, OpenLoop, poisson_arrivals
from kvblend.eval.trace import Trace, read_trace, zipf_trace
from tests.service import RunningService

RAGPULSE = Path(__file__).parents[2].parent / "shared" / "data" / "ragpulse_trace.jsonl.gz"
WINDOW = slice(48, 80)
"""The requests that the command measures where it is told nothing else."""


def write_gzip(path: Path, text: str) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(text)


def seen_in_window(trace: Trace) -> float:
    seen = {passage for request in trace.requests[: WINDOW.start] for passage in request}
    return statistics.mean(passage in seen for request in trace.requests[WINDOW] for passage in request)


def test_a_trace_is_read_in_its_order_with_the_counts_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "small_trace.jsonl.gz"
    lines = [{"t": 5, "session": 0, "passages": [2, 0]}, {"t": 9, "session": 1, "passages": [2]}]
    write_gzip(path, "".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InvalidRequestError, match="small_trace"):
        read_trace(path)
    write_gzip(tmp_path / "small_passage_tokens.json.gz", "[10, 20, 30]")
    trace = read_trace(path)
    assert trace == Trace("small_trace.jsonl.gz", [(2, 0), (2,)], {0: 10, 2: 30})
    assert trace.mean_context_tokens == 35 and trace.seen_ratio == pytest.approx(1 / 3)
    write_gzip(tmp_path / "small_passage_tokens.json.gz", "[10, 20]")
    with pytest.raises(InvalidRequestError, match="IndexError"):
        read_trace(path)
    with pytest.raises(InvalidRequestError, match=r"ends with trace\.jsonl\.gz"):
        read_trace(tmp_path / "small.json")


def test_the_trace_that_a_run_has_is_like_a_real_service() -> None:
    """RAGPulse where it is there, else our own: most passages of a request were seen before."""
    trace = read_trace(RAGPULSE) if RAGPULSE.exists() else zipf_trace()
    assert 0.8 < trace.seen_ratio < 0.97
    assert len(set(trace.requests)) > 0.9 * len(trace.requests)
    assert 5 < statistics.mean(map(len, trace.requests)) < 7
    assert len(trace.requests) >= 1000


def test_zipf_trace() -> None:
    """Drawn anew it is the same; popular passages return, the same list does not."""
    trace = zipf_trace(3)
    assert trace == zipf_trace(3) != zipf_trace(4)
    assert all(len(set(request)) == 6 for request in trace.requests)
    assert len(trace.passage_tokens) == 1000 and len(set(trace.requests)) > 0.99 * len(trace.requests)
    assert 0.87 < trace.seen_ratio < 0.95
    assert 0.8 < seen_in_window(trace) < 0.95


def test_passages_have_texts_of_their_own_of_the_wanted_lengths(demo_model_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path)
    ratio = chars_per_token(tokenizer)
    assert 2 < ratio < 6
    counts = zipf_trace().passage_tokens
    texts = PassageTexts(counts, scale=2.0, chars_per_token=ratio)
    documents = {passage: texts.text(passage) for passage in range(200)}
    assert documents == {passage: texts.text(passage) for passage in range(200)}
    assert len({text[:100] for text in documents.values()}) == len(documents)
    assert len({text[40:240] for text in documents.values()}) > 0.95 * len(documents), "they differ by heading alone"
    tokens = {passage: len(tokenizer(text)["input_ids"]) for passage, text in documents.items()}
    assert sum(tokens.values()) == pytest.approx(sum(2 * counts[passage] for passage in tokens), rel=0.05)
    assert all(0.5 < tokens[passage] / (2 * counts[passage]) < 2 for passage in tokens)
    assert len(texts.text(7, edition=1)) == len(texts.text(7)) and texts.text(7, edition=1) != texts.text(7)
    assert 80 < len(tokenizer(bystander_text(0, chars_per_token=ratio))["input_ids"]) < 140
    assert " at 0x" not in library_text(), "an object's address is another one in the next process"


def test_rows_measure_the_same_requests_with_what_is_new_new_to_each() -> None:
    trace = Trace("made", [(0, 1), (1, 2), (2, 3), (3, 0)], dict.fromkeys(range(4), 100))
    prompts = TracePrompts(trace, PassageTexts(trace.passage_tokens, scale=1.0, chars_per_token=4.0), 2, 2)
    first, second = prompts.measured(0), prompts.measured(1)
    assert first == prompts.first(4)[2:] and prompts.warm == prompts.first(2)
    assert [prompt.question for prompt in first] == [prompt.question for prompt in second]
    assert len({prompt.question for prompt in prompts.first(4)}) == 4
    assert len(distinct_documents(prompts.warm)) == 3
    known = set(distinct_documents(prompts.warm))
    (new,), (newer,) = (set(distinct_documents(row)) - known for row in (first, second))
    assert new != newer and len(new) == len(newer)


def test_poisson_arrivals() -> None:
    arrivals = poisson_arrivals(4.0, 4000, seed=1)
    gaps = np.diff(arrivals)
    assert arrivals[0] == 0 and arrivals == poisson_arrivals(4.0, 4000, seed=1) != poisson_arrivals(4.0, 4000, seed=2)
    assert gaps.min() >= 0 and gaps.mean() == pytest.approx(1 / 4, rel=0.1)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1), "as spread as an exponential distribution's"
    assert [len(poisson_arrivals(4.0, count, seed=1)) for count in (0, 1, 2)] == [0, 1, 2]


async def test_traffic_sends_every_request_once_and_in_order() -> None:
    for traffic in (ClosedLoop(3), OpenLoop(1000.0)):
        sent: list[int] = []

        async def send(number: int, sent: list[int] = sent) -> None:
            sent.append(number)

        await traffic.run(send, range(20))
        assert sent == list(range(20))


def answer(ttft_ms: float, **report: Any) -> Answer:
    return Answer(ttft_ms, 2 * ttft_ms, BlendReport(outcome="blended", prompt_tokens=120, **report))


def test_percentiles() -> None:
    values = list(range(101))
    assert [percentile(values[::-1], percent) for percent in (0, 50, 95, 99)] == [0, 50, 95, 99]
    assert percentile([1.0, 2.0], 50) == 1.5 and percentile([7.0], 99) == 7 and percentile([], 50) is None


def test_a_row_counts_what_failed_and_tells_of_the_rest() -> None:
    measured = Measured("blend, 2 clients", seconds=2.0)
    for number in range(4):
        with measured.request():
            assert measured.num_in_flight == 1
            if number == 1:
                raise KVBlendError("it broke")
            measured.answers[number] = answer(
                10.0 * number, context_tokens=100, reused_tokens=60, exact_tokens=10 * number
            )
    assert measured.num_in_flight == 0
    assert measured.failures == ["blend, 2 clients: a request: KVBlendError: it broke"]
    row = load_row("blend", ClosedLoop(2), measured)
    assert (row["requests"], row["errors"], row["requests_per_s"]) == (4, 1, 1.5)
    assert (row["concurrency"], row["rate"], row["repeat"]) == (2, None, False)
    assert (row["ttft_ms_p50"], row["e2e_ms_p50"], row["prompt_tokens"]) == (20, 40, 120)
    assert row["hit_rate"] == pytest.approx((60 + 80 + 90) / 300) and row["bystander_itl_ms_p99"] is None
    assert load_row("none", OpenLoop(0.5), measured)["rate"] == 0.5
    assert hit_rate([]) is None
    measured.answers.clear()
    with pytest.raises(KVBlendError, match="it broke"):
        measured.require_answers()


async def test_what_cannot_be_asked_is_told_and_waited_for_by_nobody() -> None:
    """At an address where nobody listens a bystander ends and is noted, and requests without any answer raise."""
    trace = zipf_trace()
    prompts = TracePrompts(trace, PassageTexts(trace.passage_tokens, scale=0.1, chars_per_token=4.0), 2, 2)
    measured, failures = Measured("none"), list[str]()
    async with load_client(f"http://127.0.0.1:{free_port()}") as client:
        async with bystanders(client, ["Go on."], measured):
            pass
        run = LoadRun(client, prompts, answer_tokens=2, console=Console(quiet=True), failures=failures)
        with pytest.raises(KVBlendError, match="none of 3 requests was answered"):
            await run.curve(3, 2)
    assert [line.split(":")[1] for line in measured.failures] == [" a bystander"] and len(failures) == 3


@pytest.mark.extended
async def test_the_service_is_measured(service: RunningService, demo_model_path: Path) -> None:
    """Blends find what the warm requests had, full prefill nothing; an identical request is found whole.

    Bystanders decode beside both. A window of the curve counts only its own requests.
    """
    ratio = chars_per_token(AutoTokenizer.from_pretrained(demo_model_path))
    trace = zipf_trace()
    scale = 300 / trace.mean_context_tokens
    texts = PassageTexts(trace.passage_tokens, scale=scale, chars_per_token=ratio)
    prompts = TracePrompts(trace, texts, num_warm=24, num_measured=6)
    known = set(distinct_documents(prompts.warm))
    asked = [text for prompt in prompts.measured(0) for text in prompt.documents]
    known_share = sum(len(text) for text in asked if text in known) / sum(map(len, asked))
    failures: list[str] = []
    async with load_client(service.url) as client:
        run = LoadRun(
            client,
            prompts,
            answer_tokens=8,
            console=Console(quiet=True),
            bystander_texts=[bystander_text(0, chars_per_token=ratio)],
            failures=failures,
        )
        await run.store_warm()
        rows = await run.rows([ClosedLoop(2), OpenLoop(20.0)], ["blend", "none"])
        repeats = await run.repeat_rows([2], ["blend", "prefix_cache", "none"])
        windows = await run.curve(18, 4)
        later = TracePrompts(trace, texts, num_warm=30, num_measured=6)
        assert {text for prompt in later.measured(0) for text in prompt.documents} - set(distinct_documents(later.warm))
        run = LoadRun(client, later, answer_tokens=8, console=Console(quiet=True), failures=failures)
        (ingested,) = await run.rows([ClosedLoop(2)], ["blend"], ingested=True)
    assert not failures
    assert [(row["mode"], row["concurrency"], row["rate"]) for row in rows] == [
        ("blend", 2, None), ("none", 2, None), ("blend", None, 20.0), ("none", None, 20.0),
    ]  # fmt: skip
    assert [(row["mode"], row["requests"], row["repeat"]) for row in repeats] == [
        ("blend", 8, True), ("prefix_cache", 8, True),
    ]  # fmt: skip
    for row in [*rows, *repeats]:
        assert row["errors"] == 0 and row["requests"] == sum(row["outcomes"].values())
        assert 0 < row["ttft_ms_p50"] <= row["ttft_ms_p95"] and row["ttft_ms_p50"] < row["e2e_ms_p50"]
        assert row["requests_per_s"] > 0 and 200 < row["prompt_tokens"] < 600
        assert 0 < row["bystander_itl_ms_p50"] <= row["bystander_itl_ms_p99"]
    for blend, none in (rows[:2], rows[2:]):
        assert blend["outcomes"] == {"blended": 6} and none["outcomes"] == {"prefilled": 6}
        assert 0.5 < 0.95 * known_share < blend["hit_rate"] and none["hit_rate"] == 0
        assert blend["hit_rate"] < 1, "what is new to this row was stored before it"
    assert ingested["outcomes"] == {"blended": 6} and ingested["hit_rate"] > 0.95, "a passage was not stored first"
    assert repeats[0]["outcomes"] == {"prefix_hit": 8}
    # whole blocks of vLLM's cache, of which other tests' requests to the same server may have taken some
    assert all(row["hit_rate"] > 0.5 for row in repeats)
    assert [window["window"] for window in windows] == [0, 1]
    assert all(window["hit_rate"] > 0.5 and window["ttft_ms_p50"] > 0 for window in windows)
    machine = {"dtype": "float32", "threads": 1, "cpu": "any"}
    shown = {"results": rows + repeats, "curve": windows, "first_error": None}
    tables = load_tables({"machine": machine, "model": "m", "trace": {"name": "zipf"}, **shown})
    assert [table.row_count for table in tables] == [6, 2]
