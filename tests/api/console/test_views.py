"""The comparison, the store and the model: every figure is one that the API gave."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from prometheus_client.parser import text_string_to_metric_families

from kvblend.core.calibration_file import write_calibration
from kvblend.core.rest import KVPair
from kvblend.sdk import Client
from kvblend.store import CPUTier, TieredStore
from tests.api.console.harbour import harbour
from tests.api.scripted_service import ScriptedService
from tests.core.calibrations import a_calibration, a_curve

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def collection(console: ScriptedService) -> Iterator[str]:
    with harbour(console, "viewed") as name, Client(console.url) as client:
        client.query(name, "When does the lock open?")
        yield name


def test_two_answers_stand_side_by_side(console: ScriptedService, collection: str, open_page: OpenPage) -> None:
    page = open_page(f"{console.url}/#/compare?c={collection}")
    words = console.engine.words
    console.engine.words = lambda body: [
        "It opens ",
        "every hour." if "cache_salt" in body else "every twenty minutes.",
    ]
    try:
        page.get_by_label("Question").fill("When does the lock open?")
        page.keyboard.press("Enter")
        expect(page.locator(".figures")).to_contain_text("Time to first token")
    finally:
        console.engine.words = words
    blend, full = page.get_by_role("region", name="Blend"), page.get_by_role("region", name="Full prefill")
    expect(blend).to_contain_text("Blended, first token after")
    expect(full).to_contain_text("Prefilled in full, first token after")
    expect(full.locator(".only")).to_contain_text("hour.")
    expect(page.locator(".figures")).to_contain_text("KL to full prefill")
    expect(page.locator(".figures")).to_contain_text("75% up to the first token: 20.0\u202fGFLOPs in place of 80")
    tokens = page.get_by_role("region", name="Divergence by token")
    expect(tokens.locator(".word")).to_have_count(2)
    tokens.locator(".words").press("End")
    expect(tokens.locator(".readout")).to_contain_text("token 2: KL")


def test_what_one_answer_alone_says_is_marked(console: ScriptedService, open_page: OpenPage) -> None:
    page = open_page(console.url)
    code = "async ([a, b]) => (await import('/console/compare/difference.js')).difference(a, b)"
    for one, other, own, shared in (
        ("a b c", "a b c", [], 3),
        ("a b c", "a x c", ["b"], 2),
        ("", "a", [], 0),
        ("a b", "", ["a b"], 0),
        ("the lock opens at ten", "the gate opens at ten", ["lock"], 4),
    ):
        found = page.evaluate(code, [one, other])
        assert [text.strip() for text, alone in found["one"] if alone] == own and found["shared"] == shared
        assert "".join(text for text, _ in found["one"]) == one


def passages_by_tier(url: str) -> dict[str, float]:
    """How many passages of contexts came from each tier, whichever test has asked for them."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    (family,) = (family for family in families if family.name == "kvblend_context_passages")
    return {each.labels["tier"]: each.value for each in family.samples if each.name.endswith("_total")}


def test_the_store_is_as_its_tiers_say(console: ScriptedService, collection: str, open_page: OpenPage) -> None:
    page = open_page(f"{console.url}/#/store")
    with Client(console.url) as client:
        cpu = client.kv_stats().tiers[0]
    expect(page.get_by_text(f"{cpu.num_files} files, 0 pinned").first).to_be_visible()
    passages = passages_by_tier(console.url)
    share = f"{100 * passages['cpu'] / sum(passages.values()):.0f}%"
    row = page.get_by_role("row", name="came from cpu").get_by_role("cell")
    expect(row).to_have_text([share, f"{passages['cpu']:.0f}", f"{sum(passages.values()):.0f}", re.compile("passages")])
    page.get_by_role("combobox", name="Collection").select_option(collection)
    table = page.get_by_role("table").filter(has_text="passages with stored KV")
    expect(table.get_by_role("button", name="tides.txt").first).to_be_visible()
    expect(table.get_by_role("columnheader")).to_have_text(["Passage", "Used or stored", "On", "Bytes"])
    with Client(console.url) as client:
        (pair, *_) = pairs_of(client, collection)
    pairs = page.get_by_role("table").filter(has_text="Hottest pairs")
    page.goto(f"{console.url}/#/store?c={collection}")
    expect(page.get_by_role("combobox", name="Collection")).to_have_value(collection)
    expect(pairs.get_by_role("row").nth(1)).to_contain_text(f"{pair.count:.1f}")
    expect(pairs.get_by_role("row").nth(1).get_by_role("button")).to_have_count(2)
    expect(page.get_by_text("evicted since the tier was made")).to_have_count(0)
    with TieredStore([CPUTier(Path(cpu.path), budget_bytes=cpu.budget_bytes)]) as store:
        store.evict("cpu", 1)
    page.reload()
    expect(page.get_by_text(re.compile("1 file evicted .*, .* after the last use"))).to_be_visible()


def test_the_model_is_shown_as_it_was_measured(console: ScriptedService, open_page: OpenPage) -> None:
    page = open_page(f"{console.url}/#/model")
    reload_until(page, "Not calibrated")
    expect(page.locator("svg")).to_have_count(0)
    calibration = a_calibration(a_curve({0.05: 0.4, 0.15: 0.09, 0.3: 0.03}), target_kl=0.1)
    file = write_calibration(calibration, model="nowhere", home=console.home)
    try:
        reload_until(page, "Held to its calibration")
        summary = page.get_by_role("img", name=re.compile("KL to full prefill by recompute ratio, target 0.1 nats"))
        assert "fits where it stands: ratio 0.15" in (summary.get_attribute("aria-label") or "")
        page.get_by_text("The same as a table").click()
        expect(page.get_by_role("row", name="behind a neutral text").first).to_contain_text("0.4")
    finally:
        file.unlink()


def pairs_of(client: Client, collection: str) -> list[KVPair]:
    """What was counted of a prompt, which is done beside its answer."""
    deadline = time.monotonic() + 60
    while not (pairs := client.kv_pairs(collection)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return pairs


def reload_until(page: Page, heading: str, *, seconds: float = 60.0) -> None:
    """A calibration that is written or taken away is seen within 5 seconds."""
    deadline = time.monotonic() + seconds
    expect(page.get_by_role("heading", name="The gate")).to_be_visible()
    while not page.get_by_role("heading", name=heading).count():
        assert time.monotonic() < deadline
        page.reload()
        expect(page.get_by_role("heading", name="The gate")).to_be_visible()
