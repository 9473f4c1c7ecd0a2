"""WCAG 2.2 AA by axe on every view, in both themes; and what axe cannot see: keyboard, width, motion."""

from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, ViewportSize, expect

from tests.api.console.harbour import harbour
from tests.api.scripted_service import ScriptedService

OpenPage = Callable[..., Page]
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RULES = {"runOnly": {"type": "tag", "values": TAGS}}
PHONE: ViewportSize = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def collection(console: ScriptedService) -> Iterator[str]:
    with harbour(console, "seen") as name:
        yield name


def views(page: Page, url: str, collection: str) -> Iterator[str]:
    """Goes through the views, each with something on it."""
    page.goto(f"{url}/#/collections")
    expect(page.get_by_role("link", name=collection)).to_be_visible()
    yield "collections"
    page.goto(f"{url}/#/collections?c={collection}")
    expect(page.get_by_role("table")).to_be_visible()
    yield "one collection"
    page.get_by_role("button", name="handbook.md", exact=True).click()
    expect(page.get_by_role("button", name="Keep the KV").first).to_be_visible()
    yield "a document"
    page.keyboard.press("Escape")
    page.goto(f"{url}/#/ask?c={collection}")
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Question").fill("Who must be told of an incident?")
    page.get_by_label("Question").press("Enter")
    expect(page.locator(".word").first).to_be_visible()
    page.locator(".cite").first.focus()
    yield "an answer"
    page.goto(f"{url}/#/compare?c={collection}")
    page.get_by_label("Question").fill("When does the lock open?")
    page.get_by_label("Question").press("Enter")
    expect(page.locator(".figures")).to_be_visible()
    yield "a comparison"
    page.goto(f"{url}/#/store")
    expect(page.get_by_text("passages with stored KV")).to_be_visible()
    yield "the store"
    page.goto(f"{url}/#/model")
    expect(page.get_by_role("heading", name="The gate")).to_be_visible()
    yield "the model"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_view_breaks_a_rule(console: ScriptedService, collection: str, open_page: OpenPage, theme: str) -> None:
    page = open_page(console.url, theme=theme)
    for view in views(page, console.url, collection):
        found = Axe().run(page, options=RULES).response["violations"]
        told = [f"{rule['id']}: {[node['html'][:160] for node in rule['nodes'][:3]]}" for rule in found]
        assert not told, f"{view}, {theme}: {told}"


def test_nothing_is_wider_than_a_phone(console: ScriptedService, collection: str, open_page: OpenPage) -> None:
    page = open_page(console.url, viewport=PHONE)
    for view in views(page, console.url, collection):
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], view
        nav = page.get_by_role("navigation").bounding_box()
        assert nav is not None and nav["y"] + nav["height"] == PHONE["height"], "the tabs lie at the foot"


def test_the_theme_can_be_chosen(console: ScriptedService, open_page: OpenPage) -> None:
    page = open_page(console.url, theme="dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(ground)
    button = page.get_by_role("button", name="Theme")
    button.click()
    expect(button).to_have_text("Theme: light")
    assert page.evaluate(ground) != dark
    page.reload()
    assert page.evaluate(ground) != dark
    button.click()
    assert page.evaluate(ground) == dark


def test_a_keyboard_is_enough(console: ScriptedService, collection: str, open_page: OpenPage) -> None:
    page = open_page(f"{console.url}/#/model")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Ask")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_label("Question")).to_be_focused()
    expect(page).to_have_title("Ask · kvblend")
