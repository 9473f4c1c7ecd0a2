"""The quickstart notebook, executed cell by cell in a kernel of its own against the real service."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.service import RunningService

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "01_quickstart.ipynb"


def printed(notebook: nbformat.NotebookNode) -> str:
    """Join what the cells print, and the values that they show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(
        output.text if output.output_type == "stream" else f"{output.data['text/plain']}\n" for output in outputs
    )


def test_the_notebook_runs_over_http(service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are made by running it, not committed"
    monkeypatch.setenv("KVBLEND_URL", service.url)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    text = printed(notebook)
    assert text.count(": 1 of 1 passages encoded") == 3
    assert "Ada Lindqvist" in text
    (reused,) = re.findall(r"^blended: (\d+) tokens reused", text, re.MULTILINE)
    assert int(reused) > 100
    assert re.search(r"TTFT in ms: blended \d+, full prefill \d+", text)
    assert "closed on Mondays" in re.sub(r"\s+", " ", text)
    assert "hills of Tarn" in text
    assert "'blended'" in text, "the chain's documents are the collection's passages: their KV is there"
    assert re.search(r"cpu: \d+ files", text)
