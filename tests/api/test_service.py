"""The main job over HTTP, on real vLLM with the connector: ingest, retrieve, blend, answer, delete."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from httpx_sse import connect_sse

from kvblend.core.errors import InvalidRequestError, NotFoundError
from kvblend.core.rest import IngestJob, QueryDelta, QueryResponse, SearchResponse
from kvblend.sdk import Client
from tests.api.front import front
from tests.sdk.settled import until_settled
from tests.service import RunningService

BRIDGES = """# Bridges of Halden

The old bridge of Halden was built by Ada Brenner in 1821. It has seven arches of red granite and carries a tram line
since 1904. In winter the masons of the town cover its parapets with straw, so that frost does not split the stone.

# Rivers

The river Orm is 212 kilometres long. It rises in a bog below the Tarn hills and runs to the sea at Halden. Salmon come
up the river in May, and the town holds a feast on the first Sunday of June.
"""
BAKERIES = """# Bakeries of Halden

The oldest bakery of the town stands on Mill Lane. It bakes a rye bread with caraway, which sailors took to sea for a
month and more. The oven is fired with birch. On the day of Saint Lucy it sells buns of saffron in the shape of a cat.
"""


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@pytest.fixture(scope="module")
def halden(client: Client) -> str:
    """A collection of two documents, with their KV."""
    client.create_collection("halden", passage_tokens=64)
    for name, text in (("bridges.md", BRIDGES), ("bakeries.md", BAKERIES)):
        job = client.wait(client.add_document("halden", text, name=name, media_type="text/markdown"), timeout_s=120)
        assert job.error is None
        assert job.passages_encoded == job.passages_total > 0
        assert job.tokens_encoded > 0
    return "halden"


def test_a_question_is_answered_from_reused_kv(client: Client, halden: str) -> None:
    answer = client.query(halden, "How long is the river Orm?", top_k=4, max_tokens=24)
    assert answer.sources[0].document_name == "bridges.md"
    report = answer.report
    assert report.outcome == "blended"
    assert report.missed_passages == 0
    assert report.reused_tokens + report.exact_tokens == report.context_tokens
    assert report.selected_tokens == pytest.approx(0.15 * report.reused_tokens, abs=4)
    assert sum(report.tiers.values()) == report.reused_tokens
    assert report.ttft_ms is not None and report.ttft_ms > sum(report.steps_ms.model_dump().values())
    assert answer.usage.prompt_tokens == report.prompt_tokens > report.context_tokens


@pytest.mark.parametrize(
    ("ratio", "selector"), [(0.0, "probe"), (0.3, "probe"), (None, "none"), (1.0, "probe"), (None, "all")]
)
def test_a_request_names_its_ratio_and_selector(
    client: Client, halden: str, ratio: float | None, selector: str
) -> None:
    question = "Where does the river Orm rise?"
    options = {"recompute_ratio": ratio, "selector": selector}
    report = client.query(halden, question, top_k=3, max_tokens=2, **options).report  # type: ignore[arg-type]
    wanted = {"none": 0.0, "all": 1.0}.get(selector, ratio)
    assert wanted is not None
    assert report.outcome == "blended"
    if wanted in (0.0, 1.0):
        assert report.selected_tokens == wanted * report.reused_tokens
    assert report.selected_tokens == pytest.approx(wanted * report.reused_tokens, abs=4)


@pytest.mark.parametrize("reuse", ["none", "prefix_cache"])
def test_without_reuse_the_report_says_so(client: Client, halden: str, reuse: str) -> None:
    question = "When was the bridge built?"
    answers = [client.query(halden, question, top_k=3, reuse=reuse, max_tokens=4) for _ in range(2)]  # type: ignore[arg-type]
    reports = [answer.report for answer in answers]
    assert {report.outcome for report in reports} == {"prefilled"}
    assert reuse in (reports[1].reason or "")
    assert (reports[1].exact_tokens > 0) == (reuse == "prefix_cache"), (
        "a repeated prompt hits vLLM's prefix cache only there"
    )
    assert reports[0].reused_tokens == reports[1].reused_tokens == 0


def test_a_streamed_answer_is_the_whole_one_in_pieces(client: Client, halden: str) -> None:
    """Reference: query. Ours: stream_query. Both find the same in vLLM's cache: the same numbers, whatever they say."""
    question = "What bread does the oldest bakery bake?"
    assert client.query(halden, question, top_k=2, max_tokens=2).report.outcome == "blended"
    until_settled(lambda: client.query(halden, question, top_k=2, max_tokens=12).report.model_dump(mode="json"))
    events = list(client.stream_query(halden, question, top_k=2, max_tokens=12))
    assert isinstance(events[0], SearchResponse)
    assert isinstance(events[-1], QueryResponse)
    deltas = [event for event in events[1:-1] if isinstance(event, QueryDelta)]
    assert len(deltas) == len(events) - 2 > 1
    assert "".join(delta.text for delta in deltas).strip() == events[-1].answer
    assert events[0].sources == events[-1].sources
    assert events[-1].report.outcome in ("blended", "prefix_hit")
    assert client.query(halden, question, top_k=2, max_tokens=12).answer == events[-1].answer


def test_an_unchanged_document_costs_nothing_and_a_changed_one_its_changes(client: Client, halden: str) -> None:
    again = client.wait(client.add_document(halden, BAKERIES, name="bakeries.md", media_type="text/markdown"))
    assert (again.passages_encoded, again.passages_reused) == (0, again.passages_total)
    longer = BAKERIES + "\n# Opening hours\n\nIt opens at five in the morning, except on Mondays.\n"
    changed = client.wait(client.add_document(halden, longer, name="bakeries.md", media_type="text/markdown"))
    assert changed.passages_encoded < changed.passages_total
    assert "five" in client.search(halden, "When does it open?", top_k=1)[0].text


def test_a_job_tells_its_progress_as_events(service: RunningService, client: Client) -> None:
    client.create_collection("events", passage_tokens=64)
    job = client.add_document("events", BRIDGES, name="b")
    with (
        httpx.Client(timeout=120) as http,
        connect_sse(http, "GET", f"{service.url}/v1/collections/events/jobs/{job.id}/events") as source,
    ):
        states = [(event.event, IngestJob.model_validate_json(event.data)) for event in source.iter_sse()]
    assert [name for name, _ in states[-1:]] == ["done"]
    assert states[-1][1].status == "succeeded"
    counts = [state.passages_encoded + state.passages_reused for _, state in states]
    assert counts == sorted(counts)
    assert counts[-1] == states[-1][1].passages_total


def test_a_delete_removes_text_vectors_and_kv(service: RunningService, client: Client) -> None:
    def kv_files() -> set[str]:
        """Ids of passages that have files."""
        roots = (service.cpu_path, service.home / "kv")
        return {path.parent.name for root in roots for path in root.rglob("*.kv")}

    client.create_collection("gone", passage_tokens=64)
    client.wait(client.add_document("gone", "The lamp of Rost burns whale oil, says this test alone.", id="dir/lamp"))
    passage_id = client.search("gone", "lamp")[0].passage_id
    assert passage_id in kv_files()
    client.delete_document("gone", "dir/lamp")
    assert passage_id not in kv_files()
    assert client.search("gone", "lamp") == []
    with pytest.raises(NotFoundError):
        client.get_document("gone", "dir/lamp")
    client.wait(client.add_document("gone", "The lamp of Rost burns whale oil, says this test alone.", id="again"))
    client.delete_collection("gone")
    assert passage_id not in kv_files()


def test_kv_that_two_collections_use_goes_with_the_last(service: RunningService, client: Client) -> None:
    text = "The clock of Vik strikes thirteen."
    for name in ("first", "second"):
        client.create_collection(name)
        client.wait(client.add_document(name, text, id="clock"))
    client.delete_collection("first")
    report = client.query("second", "What does the clock strike?", max_tokens=2).report
    assert (report.outcome, report.missed_passages) == ("blended", 0)
    client.delete_collection("second")


def test_a_prompt_beyond_the_model_says_by_how_much(client: Client, halden: str) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"\d+ more than the model's 4096; of its 2 passages the first 0 would fit"
    ):
        client.query(halden, "word " * 5000, top_k=2)


def test_lost_kv_is_prefilled_now_and_encoded_in_the_background(service: RunningService, client: Client) -> None:
    roots = (service.cpu_path, service.home / "kv")

    def kv_files() -> dict[tuple[Path, str], list[Path]]:
        """By tier and passage, which may have variants, too."""
        found = {(root, id): list(root.rglob(f"{id}/*.kv")) for root in roots for id in passage_ids}
        return {place: paths for place, paths in found.items() if paths}

    client.create_collection("lost", passage_tokens=64)
    client.wait(client.add_document("lost", BRIDGES, id="b", media_type="text/markdown"))
    passage_ids = {source.passage_id for source in client.search("lost", "Orm", top_k=64)}
    places = set(kv_files())
    assert {passage_id for _, passage_id in places} == passage_ids
    for paths in kv_files().values():
        for path in paths:
            path.unlink()
    report = client.query("lost", "How long is the Orm?", top_k=64, max_tokens=4).report
    assert (report.reused_tokens, report.missed_passages) == (0, len(passage_ids))
    wait_until(lambda: set(kv_files()) == places)


def test_two_services_of_one_store_encode_a_passage_once(
    service: RunningService, client: Client, demo_model_path: Path, embedding_model_path: Path, tmp_path: Path
) -> None:
    """Both are given the same document at the same time; each says that it has all of it."""
    text = " ".join(
        f"Lighthouse {number} of the coast was lit in {1700 + number} by its first keeper." for number in range(80)
    )
    with (
        front(service, model=demo_model_path, embedding_model=embedding_model_path, home=tmp_path / "home") as url,
        Client(url) as other,
    ):
        clients = (client, other)
        for each in clients:
            each.create_collection("twice", passage_tokens=64)
        jobs = [each.add_document("twice", text, id="d") for each in clients]
        done = [each.wait(job) for each, job in zip(clients, jobs, strict=True)]
        total = done[0].passages_total
        assert total > 10 and [job.passages_encoded + job.passages_reused for job in done] == [total, total]
        assert sum(job.passages_encoded for job in done) == total
        assert all(not each.kv_lookup("twice").missing for each in clients)
        for each in clients:
            each.delete_collection("twice")


def test_probes_and_metrics(service: RunningService, client: Client, halden: str) -> None:
    assert httpx.get(f"{service.url}/readyz").json()["engines"] == [{"healthy": True, "control": True}]
    client.query(halden, "Who is Ada Brenner?", max_tokens=2)
    metrics = httpx.get(f"{service.url}/metrics").text
    for name in (
        'kvblend_answers_total{outcome="blended"}',
        'kvblend_ttft_seconds_bucket{le="+Inf",outcome="blended"}',
        'kvblend_context_tokens_total{kind="reused"}',
        'kvblend_requests_total{method="POST",route="/v1/collections/{collection}/query",status="200"}',
        "kvblend_encoded_passages_total",
        'kvblend_ingest_jobs_total{status="succeeded"}',
        'kvblend_context_passages_total{tier="cpu"}',
        'kvblend_blend_seconds_total{step="load"}',
        'kvblend_tier_used_bytes{tier="cpu"}',
        'kvblend_tier_files{tier="disk"}',
        'kvblend_tier_hits_total{op="lookup",tier="cpu"}',
        'kvblend_tier_keys_total{op="lookup",tier="cpu"}',
        'kvblend_tier_seconds_total{op="lookup",tier="cpu"}',
    ):
        value = next(line for line in metrics.splitlines() if line.startswith(name)).rsplit(" ", 1)[1]
        assert float(value) > 0, name
    assert 'kvblend_tier_failures_total{op="lookup",tier="cpu"} 0.0' in metrics
    engine = httpx.get(f"{service.engine_url}/metrics").text  # vLLM's own, in which the connector's counts are
    for name in ("hits", "keys", "bytes", "seconds", "calls"):
        for op, tier in (("fetch", "cpu"), ("put", "disk")):
            lines = [line for line in engine.splitlines() if line.startswith(f"vllm:kvblend_tier_{name}_total")]
            line = next(line for line in lines if f'op="{op}"' in line and f'tier="{tier}"' in line)
            assert float(line.rsplit(" ", 1)[1]) > 0, line
    stats = client.kv_stats().tiers
    assert [tier.name for tier in stats] == ["cpu", "disk"]
    assert stats[0].num_files > 0


@pytest.mark.parametrize("documents", [["The bridge of Vik is closed in winter."], []])
def test_a_client_that_leaves_aborts_its_request(service: RunningService, documents: list[str]) -> None:
    url = f"{service.url}/v1/completions"
    body = {"prompt": "Once", "max_tokens": 3000, "ignore_eos": True, "kvblend": {"documents": documents}}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=body, timeout=2)
    wait_until(lambda: service.num_running == 0)
    with httpx.stream("POST", url, json={**body, "stream": True}) as response:
        lines = response.iter_lines()  # dropped, it would close the response
        next(lines)
        wait_until(lambda: service.num_running == 1)
    wait_until(lambda: service.num_running == 0)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(0.2)
