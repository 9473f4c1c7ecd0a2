"""The view that asks: an answer with its sources, and the fate of every token of its context."""

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.api.console.harbour import ANSWER, harbour
from tests.api.console.scripted_blends import ScriptedBlends
from tests.api.scripted_service import ScriptedService

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def collection(console: ScriptedService) -> Iterator[str]:
    with harbour(console, "asked") as name:
        yield name


@pytest.fixture
def asked(console: ScriptedService, collection: str, open_page: OpenPage) -> Page:
    """The page with an answer on it."""
    page = open_page(f"{console.url}/#/ask?c={collection}")
    ask(page, "Who must be told of an incident?")
    return page


def ask(page: Page, question: str) -> None:
    page.get_by_label("Question").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "false")


def test_sentences_have_the_passages_they_stand_on(asked: Page) -> None:
    assert re.sub(r"(?<=\.)\d", "", asked.locator(".answer").inner_text()).strip() == ANSWER
    cites = asked.locator(".cite")
    expect(cites).to_have_count(2)
    expect(asked.get_by_text("The numbers were placed by this page")).to_be_visible()
    cites.first.hover()
    card = asked.get_by_role("tooltip")
    expect(card).to_contain_text("Report every incident to the duty officer within one hour, in writing.")
    expect(card.locator("mark").first).to_have_text("Report")
    card.hover()
    asked.wait_for_timeout(200)
    expect(card).to_be_visible()
    asked.keyboard.press("Escape")
    expect(card).to_have_count(0)
    cites.first.focus()
    expect(card).to_be_visible()
    asked.keyboard.press("Enter")
    dialog = asked.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text("handbook.md")
    shown = dialog.locator('[aria-current="true"]')
    expect(shown).to_be_in_viewport()
    expect(shown).to_contain_text("Report every incident to the duty officer")
    expect(shown).to_contain_text("KV on cpu and disk")
    asked.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_a_model_that_cites_is_taken_at_its_word(
    console: ScriptedService, collection: str, open_page: OpenPage
) -> None:
    words = console.engine.words
    console.engine.words = ["It opens every twenty ", "minutes [2].", " Not [99]."]
    try:
        page = open_page(f"{console.url}/#/ask?c={collection}")
        ask(page, "How often does the lock open?")
        expect(page.locator(".cite")).to_have_text(["2"])
        expect(page.get_by_text("The numbers are the model’s own")).to_be_visible()  # noqa: RUF001
        expect(page.locator(".answer")).to_contain_text("[99]")
    finally:
        console.engine.words = words


@pytest.mark.parametrize(
    ("text", "cited"),
    [
        ("Minutes [2]. So says [1][3], too.", [2, 1, 3]),
        ("[1] says so.", [1]),
        ("\u5341\u5206\u9418[2]\u3002", [2]),
        ("The file is sys.argv[1]; the cell is rows[0][2], f(x)[1] or rows[i][2].", []),
        ("Of `print([1])` and of `[2]`, as [3] says.", [3]),
        ("So:\n```\nx = [1]\n```\nas in [2].", [2]),
        ("Still written:\n```python\nx = [1]\ny = [2]", []),
        ("An odd ` mark, and [2].", [2]),
        ("There is no [9].", []),
    ],
)
def test_an_index_is_no_citation(console: ScriptedService, open_page: OpenPage, text: str, cited: list[int]) -> None:
    page = open_page(console.url)
    code = """async (text) => {
      const { ownCitations, ownPieces, sentences } = await import('/console/ask/citations.js');
      const own = ownCitations(text, [{}, {}, {}]);
      return [own.map(({ n }) => n), sentences(text).flatMap((each) => ownPieces(each, own))];
    }"""
    numbers, pieces = page.evaluate(code, text)
    assert numbers == cited == [piece for piece in pieces if isinstance(piece, int)]
    assert "".join(f"[{piece}]" if isinstance(piece, int) else piece for piece in pieces) == text


def test_code_has_no_citations_of_its_own(console: ScriptedService, collection: str, open_page: OpenPage) -> None:
    words = console.engine.words
    console.engine.words = ["The lock opens ", "every twenty minutes: ", "rows[0][2] ", "and sys.argv[1]."]
    try:
        page = open_page(f"{console.url}/#/ask?c={collection}")
        ask(page, "How often does the lock open?")
        expect(page.locator(".answer")).to_contain_text("rows[0][2] and sys.argv[1].")
        expect(page.get_by_text("The numbers are the model’s own")).to_have_count(0)  # noqa: RUF001
    finally:
        console.engine.words = words


def test_every_token_has_its_fate(asked: Page) -> None:
    legend = asked.locator(".legend li b").all_inner_texts()
    total = int(asked.get_by_role("slider").get_attribute("aria-valuemax") or 0)
    assert sum(int(count) for count in legend) == total > 100
    strip = asked.get_by_role("slider")
    strip.focus()
    asked.keyboard.press("End")
    expect(strip).to_have_attribute("aria-valuetext", f"tokens {total - 119} to {total} of {total}")
    asked.keyboard.press("+")
    expect(strip).to_have_attribute("aria-valuetext", re.compile(r"tokens \d+ to \d+ of"))
    assert asked.locator(".word").count() == 60
    asked.locator(".words").focus()
    asked.keyboard.press("ArrowRight")
    expect(asked.locator(".readout")).to_contain_text(
        re.compile(r"token \d+, of passage \d: \w+, .*score .* rank \d+ of")
    )
    box = strip.bounding_box()
    assert box is not None
    asked.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    expect(strip).to_have_attribute("aria-valuenow", "0")
    expect(asked.locator(".word").first).to_have_class("word exact")
    asked.get_by_label("Show passage 1").click()
    expect(asked.locator(".words")).to_contain_text("Report every incident")


def test_a_passage_that_is_slower_to_load_than_to_compute_is_told(
    console: ScriptedService, blends: ScriptedBlends, collection: str, open_page: OpenPage
) -> None:
    blends.slow_tiers = frozenset({"cpu"})
    try:
        page = open_page(f"{console.url}/#/ask?c={collection}")
        ask(page, "Who must be told of an incident?")
    finally:
        blends.slow_tiers = frozenset()
    figures = page.locator(".figures")
    expect(figures).to_contain_text(re.compile(r"Passed over\d passages on cpu, slower to load than to compute"))
    expect(figures).not_to_contain_text("Without stored KV")
    expect(page.locator(".legend")).to_contain_text("computed: no stored KV was used")
    page.get_by_label("Show passage 1").click()
    page.locator(".words").press("ArrowRight")
    expect(page.locator(".readout")).to_contain_text("its KV on cpu was passed over")


def test_the_steps_are_those_that_were_measured(asked: Page) -> None:
    fall = asked.locator(".fall")
    for step in ("Retrieve", "Load", "Probe", "Repair", "Question", "Together"):
        expect(fall.get_by_text(step, exact=True)).to_be_visible()
    expect(fall).to_contain_text("12.5\u202fms")
    expect(fall).to_contain_text("31.0\u202fms")


def test_a_full_prefill_says_why(console: ScriptedService, collection: str, open_page: OpenPage) -> None:
    page = open_page(f"{console.url}/#/ask?c={collection}")
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Reuse").select_option("none")
    ask(page, "Who?")
    expect(page.get_by_text("You asked for a full prefill.")).to_be_visible()
    expect(page.get_by_text("asked for: reuse is none")).to_be_visible()
    assert page.locator(".legend li b").all_inner_texts()[:3] == ["0", "0", "0"]
    expect(page.locator(".fall").get_by_text("Repair")).to_have_count(0)


def test_an_answer_can_be_stopped_and_an_error_is_told(
    console: ScriptedService, collection: str, open_page: OpenPage
) -> None:
    page = open_page(f"{console.url}/#/ask?c={collection}", strict=False)
    aborted, console.engine.token_s = console.engine.num_aborted, 0.3
    try:
        page.get_by_label("Question").fill("Who?")
        page.keyboard.press("Enter")
        expect(page.locator(".answer")).to_contain_text("Report")
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_text("Stopped", exact=True)).to_be_visible()
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
        page.wait_for_function("() => document.querySelector('.answer').ariaBusy === 'false'")
    finally:
        console.engine.token_s = 0.0
    while console.engine.num_aborted == aborted:
        page.wait_for_timeout(50)
    console.engine.refusal = (400, {"error": {"message": "<b>the prompt is odd</b>", "type": "x"}})
    try:
        ask(page, "Who?")
        expect(page.get_by_role("alert")).to_contain_text("<b>the prompt is odd</b>")
    finally:
        console.engine.refusal = None


def test_the_key_is_asked_for_once_and_kept_for_the_tab(lone_url: str, open_page: OpenPage) -> None:
    page = open_page(lone_url, strict=False)
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key").fill("secret")
    dialog.get_by_role("button", name="Use it").click()
    expect(page.get_by_text("There is no collection yet")).to_be_visible()
    assert page.evaluate("[sessionStorage.length, JSON.stringify(localStorage), document.cookie]") == [1, "{}", ""]
    page.reload()
    expect(page.get_by_text("There is no collection yet")).to_be_visible()
    expect(page.get_by_label("vLLM does not answer")).to_be_visible()
