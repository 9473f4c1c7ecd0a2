"""Notebooks run on the session's service; `make notebooks` keeps what they print and draw."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
import pytest

from tests.notebooks.execution import execute

Execute = Callable[..., nbformat.NotebookNode]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--save-notebooks", action="store_true", help="keep what the notebooks print and draw")


@pytest.fixture
def run_notebook(request: pytest.FixtureRequest, tmp_path: Path) -> Execute:
    """From a notebook's name, and variables of its environment, to the notebook as it ran."""
    save = request.config.getoption("--save-notebooks", default=False)
    return partial(execute, work=tmp_path, save=bool(save))
