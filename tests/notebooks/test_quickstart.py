"""The quickstart notebook, executed cell by cell in a kernel of its own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.sdk import small_service

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "01_quickstart.ipynb"


def printed(notebook: nbformat.NotebookNode) -> str:
    """Join what the cells print."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_the_notebook_runs_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are made by running it, not committed"
    with small_service.running() as url:
        monkeypatch.setenv("KVBLEND_URL", url)
        client = NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        )
        client.execute()
    assert "You asked: Who built the Halden bridge?" in printed(notebook)
    assert "You asked: How long is the river Orm?" in printed(notebook)
