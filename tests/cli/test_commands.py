"""The commands against the real service."""

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from kvblend.cli.app import app
from kvblend.cli.comparison import ask, compared, summary
from kvblend.core.errors import InvalidRequestError, KVBlendError, NotFoundError
from kvblend.sdk import Client
from tests.service import RunningService

PAGES = {
    "guide/lamp.md": "# Lamps\n\nThe lamp of Vik burns seal oil.",
    "guide/more/oven.html": "<h1>Ovens</h1><p>The oven of Vik is fired with birch.</p>",
    "lamp.md": "# Another\n\nThe lamp of Halden is electric.",
    ".git/config.txt": "not a document",
    "picture.png": "not a document either",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for name, text in PAGES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def run(service: RunningService, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--url", service.url], catch_exceptions=False)


def test_a_folder_is_ingested_under_its_paths_and_asked(service: RunningService, folder: Path) -> None:
    first = run(service, "ingest", folder, "-c", "pages")
    assert first.exit_code == 0
    assert "3 documents: 3 passages encoded, 0 had their KV already" in first.stderr
    with Client(service.url) as client:
        ids = [document.id for document in client.list_documents("pages")]
    assert ids == ["guide/lamp.md", "guide/more/oven.html", "lamp.md"]
    again = run(service, "ingest", folder, "-c", "pages")
    assert "0 passages encoded, 3 had their KV already" in again.stderr
    question = "What does the lamp of Vik burn?"
    answer = run(service, "query", question, "-c", "pages", "--max-tokens", "24")
    assert answer.exit_code == 0
    assert "guide/lamp.md" in answer.stdout
    assert "blended: of " in answer.stdout
    again = run(service, "query", question, "-c", "pages", "--max-tokens", "24")
    with Client(service.url) as client:  # it finds in vLLM's cache what the command found there
        assert again.stdout.startswith(client.query("pages", question, max_tokens=24).answer)


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_taken(service: RunningService, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("The clock of Vik strikes thirteen.")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7 no more")
    with pytest.raises(KVBlendError, match="1 of 2 files"):
        run(service, "ingest", tmp_path, "-c", "half")
    with Client(service.url) as client:
        assert [document.id for document in client.list_documents("half")] == ["good.txt"]


def test_a_folder_without_documents_is_a_mistake(service: RunningService, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no txt, md, html, pdf, docx, pptx, xlsx or csv file"):
        run(service, "ingest", tmp_path, "-c", "none")


def test_the_tiers_are_printed(service: RunningService) -> None:
    result = run(service, "kv", "stats")
    assert result.exit_code == 0
    assert "cpu" in result.stdout and "disk" in result.stdout


def test_an_unknown_collection_is_named(service: RunningService) -> None:
    with pytest.raises(NotFoundError, match="'unknown'"):
        run(service, "query", "?", "-c", "unknown")


def test_the_demo_compares_three_ways_on_one_prompt(service: RunningService, folder: Path) -> None:
    run(service, "ingest", folder, "-c", "pages")
    with Client(service.url) as client:
        comparison = ask(client, "pages", "What is the oven fired with?", top_k=3)
    reports = {mode: answer.report for mode, answer in comparison.answers.items()}
    assert list(reports) == ["blend", "none", "prefix_cache"]
    assert {report.prompt_tokens for report in reports.values()} == {reports["blend"].prompt_tokens}
    assert [report.outcome for report in reports.values()] == ["blended", "prefilled", "prefilled"]
    assert reports["blend"].reused_tokens > reports["none"].reused_tokens == 0
    console = Console(width=100, record=True)
    console.print(compared(comparison), summary([comparison]))
    text = console.export_text()
    assert "vLLM, prefix cache" in text and "Median of 1 questions" in text
