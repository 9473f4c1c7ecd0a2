"""Every notebook runs, cell by cell, in a kernel of its own: on the real service, and what it shows is so."""

import re
from pathlib import Path

import nbformat
import pytest

from tests.api.front import control_address, front, linked_model
from tests.conftest import MODELS
from tests.notebooks.conftest import Execute
from tests.notebooks.execution import FOLDER, printed
from tests.service import RunningService

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES = 500_000


def test_quickstart(service: RunningService, run_notebook: Execute) -> None:
    notebook = run_notebook("01_quickstart", KVBLEND_URL=service.url)
    text = printed(notebook)
    assert text.count(": 1 of 1 passages encoded") == 3
    best_first = re.findall(r"^  \d\.\d\d  (\w+): ", printed(notebook, "answer.sources"), re.MULTILINE)
    assert best_first[0] == "bridge" and sorted(best_first) == ["bridge", "museum", "river"]
    (reused,) = re.findall(r"^blended: (\d+) tokens reused", text, re.MULTILINE)
    assert int(reused) > 100
    assert "by full prefill: " in printed(notebook, "stream_query")
    assert "'blended'" in printed(notebook, "chain.invoke"), (
        "the chain's documents are the collection's passages: their KV is there"
    )
    assert re.search(r"cpu: \d+ files", text)


@pytest.mark.extended
def test_how_blending_works(demo_model_path: Path, run_notebook: Execute) -> None:
    """The lab alone, on the demo model."""
    notebook = run_notebook("02_how_blending_works", KVBLEND_HOME=str(MODELS.parent))
    full, alone = (printed(notebook, f'print("full {what} answers:') for what in ("prefill", "reuse"))
    assert "Ada Lindqvist" in full and "Ada Lindqvist" not in alone, "what the notebook says of this model"
    assert "encoded document, full reuse answers: The Halden bridge was built by the engineer Ada" in printed(notebook)
    assert "recomputed: " in printed(notebook, "prompt.probe()")


@pytest.mark.extended
def test_langchain(service: RunningService, run_notebook: Execute) -> None:
    notebook = run_notebook("03_langchain", KVBLEND_URL=service.url)
    text = printed(notebook)
    assert text.count("prefilled - no passage of this prompt is in the store") == 1
    (reused,) = re.findall(r"^blended - (\d+) tokens reused", text, re.MULTILINE)
    assert int(reused) > 20
    assert "engineer=" in text
    assert "'dairy'" in printed(notebook, "were found in the prompt")


@pytest.mark.extended
@pytest.mark.timeout(1800)  # it calibrates
def test_is_it_right_for_my_model(
    service: RunningService, demo_model_path: Path, embedding_model_path: Path, tmp_path: Path, run_notebook: Execute
) -> None:
    """A second service in front of the same vLLM, whose live guard compares every answer."""
    model, home = linked_model(demo_model_path, tmp_path / "model"), tmp_path / "home"
    guarded = {"cost_model": False, "guard_ratio": 1.0}
    with front(service, model=model, embedding_model=embedding_model_path, home=home, **guarded) as url:
        notebook = run_notebook(
            "04_is_it_right_for_my_model",
            KVBLEND_URL=url,
            MODEL=str(model),
            VLLM_URL=service.engine_url,
            KVBLEND_CONTROL=control_address(service),
            KVBLEND_HOME=str(tmp_path / "calibrated"),
            KVBLEND_CPU_PATH=str(service.cpu_path),
            KVBLEND_DISK_PATH=str(service.home / "kv"),
        )
    assert "'status': 'calibrated'" in printed(notebook, "def ready")
    assert "'num_compared': 3" in printed(notebook, "guard")
    assert 'kvblend_gate_decisions_total{decision="calibrated"}' in printed(notebook)


@pytest.mark.extended
def test_my_own_vllm(service: RunningService, run_notebook: Execute) -> None:
    """The service's vLLM, asked directly."""
    notebook = run_notebook("05_my_own_vllm", VLLM_URL=service.engine_url, KVBLEND_CONTROL=control_address(service))
    text = printed(notebook)
    assert "committed to the store: True" in text
    reused, context = map(int, re.findall(r"^blended: (\d+) of (\d+) context tokens reused", text, re.MULTILINE)[0])
    assert 100 < reused < context
    assert "recomputed: " in text


@pytest.mark.extended
def test_sizing_and_tiers(demo_model_path: Path, run_notebook: Execute) -> None:
    notebook = run_notebook("06_sizing_and_tiers", KVBLEND_HOME=str(MODELS.parent))
    text = printed(notebook)
    assert re.search(r"^cpu: [1-9]", text, re.MULTILINE) and re.search(r"^disk: [1-9]\d files", text, re.MULTILINE)
    assert "export KVBLEND_CPU_BYTES=" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_what_is_kept_is_of_one_whole_run(path: Path) -> None:
    """From top to bottom, without an error, with pictures, and with nothing in it of the machine that ran it."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert {output.name for output in outputs if output.output_type == "stream"} <= {"stdout"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not re.search(r"/(home|root|tmp|work|dev/shm)/", printed(notebook))
    assert path.stat().st_size < MOST_BYTES
