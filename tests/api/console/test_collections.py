"""The views of collections: making one, documents on their way in, pins, and deletion with its proof."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Page, expect

from kvblend.core.media_type import MEDIA_TYPES
from kvblend.sdk import Client
from tests.api.console.harbour import NAMES, harbour
from tests.api.scripted_service import ScriptedService

OpenPage = Callable[..., Page]
DROP = """([element, name, text]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([text], name, { type: "text/plain" }));
  element.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


def test_documents_are_dropped_on_a_new_collection(
    console: ScriptedService, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(f"{console.url}/#/collections")
    page.get_by_label("Name").fill("dropped")
    page.get_by_label("Tokens a passage").fill("64")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", name="dropped")).to_be_visible()
    expect(page.get_by_text("No documents yet")).to_be_visible()
    zone = page.get_by_role("group", name="Upload documents").element_handle()
    page.evaluate(DROP, [zone, "<i>odd</i>.txt", "The tide mill grinds at every ebb. " * 40])
    meter = page.get_by_role("progressbar", name="Passages")
    expect(meter).to_have_attribute("aria-valuenow", "100")
    expect(page.get_by_text("encoded · done in")).to_be_visible()
    expect(page.get_by_role("button", name="<i>odd</i>.txt", exact=True)).to_be_visible()
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4 nothing")
    page.get_by_label("choose files").set_input_files([tmp_path / "a.pdf"])
    expect(page.get_by_role("alert")).to_contain_text("a.pdf")
    with Client(console.url) as client:
        client.delete_collection("dropped")


def test_a_file_that_is_refused_keeps_no_other_out(
    console: ScriptedService, open_page: OpenPage, tmp_path: Path
) -> None:
    texts = {"crane.md": "The crane lifts eight tonnes.", "crane.png": "no text", "tides.csv": "high;low\n4;1"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with Client(console.url) as client:
        client.create_collection("mixed", passage_tokens=64)
        page = open_page(f"{console.url}/#/collections?c=mixed", strict=False)
        page.get_by_label("choose files").set_input_files(sorted(tmp_path.iterdir()))
        expect(page.get_by_role("button", name="tides.csv", exact=True)).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(1)
        expect(page.get_by_role("alert")).to_contain_text("crane.png")
        assert sorted(document.id for document in client.list_documents("mixed")) == ["crane.md", "tides.csv"]
        accepted = page.get_by_label("choose files").get_attribute("accept") or ""
        assert sorted(accepted.split(",")) == sorted(MEDIA_TYPES)
        client.delete_collection("mixed")


def test_a_name_that_is_taken_is_told(console: ScriptedService, open_page: OpenPage) -> None:
    with harbour(console, "taken"):
        page = open_page(f"{console.url}/#/collections", strict=False)
        expect(page.get_by_role("link", name="taken")).to_contain_text("3 documents")
        page.get_by_label("Name").fill("taken")
        page.get_by_role("button", name="Create").click()
        expect(page.get_by_role("alert")).to_contain_text("taken")


def test_a_passage_is_pinned(console: ScriptedService, open_page: OpenPage) -> None:
    with harbour(console, "pinned") as name, Client(console.url) as client:
        page = open_page(f"{console.url}/#/collections?c={name}")
        page.get_by_role("button", name="tides.txt", exact=True).click()
        pin = page.get_by_role("button", name="Keep the KV of this passage from eviction").first
        pin.click()
        expect(pin).to_have_attribute("aria-pressed", "true")
        assert any(file.pinned for file in client.kv_lookup(name, document_id="tides.txt").files)
        pin.click()
        expect(pin).to_have_attribute("aria-pressed", "false")
        assert not any(file.pinned for file in client.kv_lookup(name).files)


@pytest.mark.parametrize("id", ["notes.md", "a/notes.md", "./notes.md", "a/./notes.md", "a/../notes.md", "a?b#c"])
def test_a_document_is_asked_for_by_its_own_id_alone(console: ScriptedService, open_page: OpenPage, id: str) -> None:
    """Ids with a dot for a step are refused, and were taken once: the browser must not resolve them."""
    page = open_page(console.url)
    code = "async (id) => new URL((await import('/console/api.js')).documentPath('quay', id), location.origin).href"
    path = urlsplit(page.evaluate(code, id)).path
    assert unquote(path) == f"/v1/collections/quay/documents/{id}"


def test_a_document_in_a_folder_is_deleted(console: ScriptedService, open_page: OpenPage) -> None:
    with harbour(console, "folders") as name, Client(console.url) as client:
        client.wait(client.add_document(name, "The tides of another harbour.", id="north/tides.txt"))
        page = open_page(f"{console.url}/#/collections?c={name}", strict=False)
        page.get_by_role("button", name="Delete north/tides.txt").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.get_by_role("status").filter(has_text="north/tides.txt is deleted").first).to_contain_text("(404)")
        assert sorted(document.id for document in client.list_documents(name)) == sorted(NAMES)


def test_a_deletion_shows_what_it_removed(console: ScriptedService, open_page: OpenPage) -> None:
    with harbour(console, "deleted") as name, Client(console.url) as client:
        held = len(client.kv_lookup(name, document_id="handbook.md").files)
        before = sum(tier.num_files for tier in client.kv_stats().tiers)
        page = open_page(f"{console.url}/#/collections?c={name}", strict=False)
        page.get_by_role("button", name="Delete handbook.md").click()
        page.get_by_role("button", name="Keep it").click()
        assert len(list(client.list_documents(name))) == len(NAMES)
        page.get_by_role("button", name="Delete handbook.md").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        proof = page.get_by_role("status").filter(has_text="handbook.md is deleted").first
        expect(proof).to_contain_text(f"Asked for again: not found (404). It had {held} KV files.")
        after = sum(tier.num_files for tier in client.kv_stats().tiers)
        assert held > 0 and after == before - held
        expect(proof.get_by_role("row", name="disk")).to_contain_text(f"{after // 2} ·")
        expect(page.get_by_role("button", name="Delete handbook.md")).to_have_count(0)
