"""What the console asks of the API: tokens' fates, a document's passages, the calibration."""

import time
from collections.abc import Iterator

import httpx
import pytest

from kvblend.core.calibration import Calibration
from kvblend.core.calibration_file import write_calibration
from kvblend.core.rest import DocumentPassage, DocumentPassages, QueryResponse
from kvblend.sdk import Client
from tests.api.scripted_service import ScriptedService
from tests.core.calibrations import a_calibration, a_curve

TEXT = "The tide mill of Sund grinds at every ebb. Ångström and ñandú costs 5 €. 潮の水車 🌊 " * 20


@pytest.fixture(scope="module")
def collection(console: ScriptedService) -> Iterator[str]:
    with Client(console.url) as client:
        client.create_collection("read", passage_tokens=64)
        client.wait(client.add_document("read", TEXT, id="a/b"))
        yield "read"
        client.delete_collection("read")


def query(console: ScriptedService, collection: str, **body: object) -> QueryResponse:
    url = f"{console.url}/v1/collections/{collection}/query"
    response = httpx.post(url, json={"question": "When does it grind?", "top_k": 3, **body}, timeout=60)
    response.raise_for_status()
    return QueryResponse.model_validate(response.json())


def test_tokens_are_told_where_they_are_asked_for(console: ScriptedService, collection: str) -> None:
    assert query(console, collection).report.tokens is None
    answer = query(console, collection, report_tokens=True)
    tokens, report = answer.report.tokens, answer.report
    assert tokens is not None and report.outcome == "blended" and answer.retrieve_ms is not None
    num_tokens = sum(count for _, count in tokens.fates)
    assert num_tokens == report.context_tokens == len(tokens.texts) == len(tokens.scores)
    by_place = sorted(answer.sources, key=lambda source: source.place or 0)
    assert ["".join(tokens.texts[start:end]).strip() for start, end in tokens.passages] == [
        source.text.strip() for source in by_place
    ], "each passage's tokens are its text, characters of several bytes among them"


@pytest.mark.parametrize("reuse", ["none", "prefix_cache"])
def test_what_is_not_blended_is_fresh(console: ScriptedService, collection: str, reuse: str) -> None:
    answer = query(console, collection, report_tokens=True, reuse=reuse)
    assert answer.report.tokens is not None
    assert answer.report.tokens.fates == [("fresh", answer.report.context_tokens)]
    assert answer.report.tokens.scores == [] and len(answer.report.tokens.passages) == len(answer.sources)


def test_divergence_is_told_where_it_is_asked_for(console: ScriptedService, collection: str) -> None:
    """The scripted engine gives every prompt the same distribution: nothing diverges. What is not blended has none."""
    assert query(console, collection).report.divergence is None
    answer = query(console, collection, report_divergence=True, max_tokens=6)
    divergence = answer.report.divergence
    assert divergence is not None and answer.report.outcome == "blended"
    assert len(divergence.kls) == len(divergence.agrees) == len(divergence.texts) == 6
    assert all(divergence.agrees) and max(divergence.kls) < 1e-6
    full = query(console, collection, report_divergence=True, reuse="none").report
    assert full.divergence is None and full.outcome == "prefilled"


def test_divergence_beside_what_is_in_its_way(console: ScriptedService, collection: str) -> None:
    messages = [{"role": "user", "content": "When does it grind?"}]
    body = {"messages": messages, "kvblend": {"collection": collection, "report_divergence": True}}
    answer = httpx.post(f"{console.url}/v1/chat/completions", json={**body, "n": 2}, timeout=60)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "n"
    assert "report_divergence cannot be had beside n 2" in answer.json()["error"]["message"]


def test_a_documents_passages_come_in_pages(console: ScriptedService, collection: str) -> None:
    path = f"{console.url}/v1/collections/{collection}/passages"
    with Client(console.url) as client:
        document = client.get_document(collection, "a/b")
    found: list[DocumentPassage] = []
    after: int | None = 0
    while after is not None:
        page = httpx.get(path, params={"document_id": "a/b", "after": after, "limit": 2}).raise_for_status()
        passages = DocumentPassages.model_validate(page.json())
        found += passages.passages
        after = passages.next_after
    assert len(found) == document.num_passages > 2
    assert sum(passage.num_tokens for passage in found) == document.num_tokens
    assert found[0].text.startswith("The tide mill of Sund")
    assert httpx.get(path, params={"document_id": "nobody's"}).status_code == 404
    assert httpx.get(path).status_code == 400


def test_the_calibration_is_told_as_it_was_measured(console: ScriptedService) -> None:
    """What is written, and what is taken away, is seen within 5 seconds."""
    missing = told_within(console, 404)
    assert "kvblend calibrate" in missing.json()["error"]["message"]
    written = a_calibration(a_curve({0.1: 0.2, 0.3: 0.05}), target_kl=0.1)
    file = write_calibration(written, model="nowhere", home=console.home)
    try:
        assert Calibration.model_validate(told_within(console, 200).json()) == written
    finally:
        file.unlink()


def told_within(console: ScriptedService, status: int, *, seconds: float = 60.0) -> httpx.Response:
    """The answer of the calibration's route, as soon as it has this status."""
    deadline = time.monotonic() + seconds
    while (told := httpx.get(f"{console.url}/v1/calibration")).status_code != status:
        assert time.monotonic() < deadline, told.text
        time.sleep(0.2)
    return told
