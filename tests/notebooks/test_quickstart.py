"""The quickstart notebook, executed cell by cell in a kernel of its own against the real service."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.service import RunningService

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "01_quickstart.ipynb"


def printed(notebook: nbformat.NotebookNode, code: str = "") -> str:
    """Join what the cells with `code` in them print, and the values that they show."""
    outputs = [output for cell in notebook.cells if code in cell.source for output in cell.get("outputs", [])]
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
    best_first = re.findall(r"^  \d\.\d\d  (\w+): ", printed(notebook, "answer.sources"), re.MULTILINE)
    assert best_first[0] == "bridge" and sorted(best_first) == ["bridge", "museum", "river"]
    (reused,) = re.findall(r"^blended: (\d+) tokens reused", text, re.MULTILINE)
    assert int(reused) > 100
    assert re.search(r"TTFT in ms: blended \d+, full prefill \d+", text)
    assert printed(notebook, "stream_query").partition("TTFT in ms")[0].strip(), "the answer is printed"
    assert "'blended'" in printed(notebook, "chain.invoke"), (
        "the chain's documents are the collection's passages: their KV is there"
    )
    assert re.search(r"cpu: \d+ files", text)
