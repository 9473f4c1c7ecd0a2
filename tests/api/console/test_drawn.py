"""What the page draws of an answer is what the service said of it: of a scripted engine, and of vLLM itself."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from kvblend.sdk import Client
from tests.api.console.harbour import CRANE, HANDBOOK, NAMES, TIDES, harbour
from tests.api.scripted_service import ScriptedService
from tests.service import RunningService

OpenPage = Callable[..., Page]
QUESTION = "Who must be told of an incident?"
COPY = """() => {
  const ask = window.fetch;
  window.fetch = async (...asked) => {
    const answer = await ask(...asked);
    if (answer.url.endsWith('/query')) window.streamed = answer.clone().text();
    return answer;
  };
}"""
"""Keeps what is streamed to the page: the browser's own tools keep no stream."""


def ask(page: Page, question: str = QUESTION) -> dict[str, Any]:
    """Ask in the browser; returns the answer that the service streamed to it."""
    page.evaluate(COPY)
    page.get_by_label("Question").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "false", timeout=120_000)
    streamed: str = page.evaluate("() => window.streamed")
    (done,) = re.findall(r"^event: done\r?\ndata: (.*?)\r?$", streamed, re.MULTILINE)
    answer: dict[str, Any] = json.loads(done)
    return answer


def check(page: Page) -> dict[str, Any]:
    """Every count and time on the page is the report's, and none is missing."""
    answer = ask(page)
    report = answer["report"]
    assert report["outcome"] == "blended" and report["reused_tokens"] > 0
    words = re.sub(r"\s|(?<=[.!?])\d", "", page.locator(".answer").inner_text())
    assert answer["answer"] and words[:20] == re.sub(r"\s", "", answer["answer"])[:20]
    fates: dict[str, int] = {}
    for fate, number in report["tokens"]["fates"]:
        fates[fate] = fates.get(fate, 0) + number
    legend = page.locator(".legend li b").all_inner_texts()
    assert [int(text.replace(",", "")) for text in legend] == [
        fates.get(fate, 0) for fate in ("exact", "reused", "recomputed", "fresh")
    ]
    strip = page.get_by_role("slider")
    expect(strip).to_have_attribute("aria-valuemax", str(sum(fates.values())))
    assert sum(fates.values()) == report["context_tokens"]
    steps = report["steps_ms"]
    rest = max(0.0, report["ttft_ms"] - sum(steps.values()))  # a scripted engine answers sooner than its steps took
    drawn = page.locator(".fall .number").all_inner_texts()
    measured = [answer["retrieve_ms"], steps["load"], steps["probe"], steps["repair"], rest]
    assert [_milliseconds(text) for text in drawn] == pytest.approx([*measured, sum(measured)], rel=0.01, abs=0.06)
    for tier, number in report["tiers"].items():
        expect(page.locator(".fall")).to_contain_text(f"{number:,} tokens from {tier}")
    return report  # type: ignore[no-any-return]


def _milliseconds(text: str) -> float:
    number, unit = text.split("\u202f")
    return float(number) * (1000 if unit == "s" else 1)


@pytest.fixture(scope="module")
def collection(console: ScriptedService) -> Iterator[str]:
    with harbour(console, "drawn") as name:
        yield name


def test_of_a_scripted_engine(console: ScriptedService, collection: str, open_page: OpenPage) -> None:
    check(open_page(f"{console.url}/#/ask?c={collection}"))


@pytest.mark.extended
def test_of_vllm(service: RunningService, open_page: OpenPage) -> None:
    """A model that answers, KV that was computed, and tokens that its own probe chose."""
    with Client(service.url) as client:
        client.create_collection("drawn", passage_tokens=64)
        for document, text in zip(NAMES, (CRANE, HANDBOOK, TIDES), strict=True):
            client.wait(client.add_document("drawn", text, id=document), timeout_s=300)
    report = check(open_page(f"{service.url}/#/ask?c=drawn"))
    assert report["tiers"] and report["selected_tokens"] > 0
    assert report["steps_ms"]["load"] > 0 and report["steps_ms"]["repair"] > 0


def test_passages_that_stand_elsewhere_than_retrieved_are_drawn(console: ScriptedService, open_page: OpenPage) -> None:
    with harbour(console, "ordered") as name, Client(console.url) as client:
        client.update_collection(name, order="document")
        question = "When does the lock open?"
        places = [source.place or 0 for source in client.query(name, question).sources]
        assert places != sorted(places), "the lock stands behind the incidents in its document"
        page = open_page(f"{console.url}/#/ask?c={name}")
        ask(page, question)
        drawn = page.locator(".order svg")
        told = "; ".join(f"retrieved {rank + 1}, served {place + 1}" for rank, place in enumerate(places))
        expect(drawn).to_have_attribute("aria-label", told)
        moved = sum(place != rank for rank, place in enumerate(places))
        expect(drawn.locator("line")).to_have_count(len(places))
        expect(drawn.locator("line.moved")).to_have_count(moved)
        expect(page.locator(".order")).to_contain_text(f"{moved} passage")
