"""A notebook, run from top to bottom in a kernel of its own."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

__all__ = ["FOLDER", "execute", "printed"]

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


def execute(name: str, *, work: Path, save: bool, **environment: str) -> nbformat.NotebookNode:
    """Run it within `work`, with these variables besides; `save` keeps what it prints and draws in its file.

    Raises CellExecutionError where a cell does.
    """
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=None, kernel_name="python3", record_timing=False, resources={"metadata": {"path": str(work)}}
    )
    client.execute(env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline", **environment})
    if save:
        for cell in notebook.cells:
            if cell.cell_type == "code":  # what goes to standard error is of that one run
                cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
        nbformat.write(notebook, path)
    return notebook


def printed(notebook: nbformat.NotebookNode, code: str = "") -> str:
    """Join what the cells with `code` in them print, and the values that they show."""
    outputs = [output for cell in notebook.cells if code in cell.source for output in cell.get("outputs", [])]
    return "".join(
        output.text if output.output_type == "stream" else f"{output.data.get('text/plain', '')}\n"
        for output in outputs
    )
