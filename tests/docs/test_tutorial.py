"""What the tutorial has one type runs, against a service without a model."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.scripted_service import scripted_service

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def url(demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tutorial")
    with scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path) as service:
        yield service.url


def test_the_tutorial_can_be_followed(url: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for page in ("access.md", "console.md"):  # all of them would take minutes to embed
        shutil.copy(DOCS / page, tmp_path / "docs")
    text = (DOCS / "tutorial.md").read_text()
    commands = re.findall(r"^    kvblend (.*?)(?: +#.*)?$", text, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["ingest", "kv", "query", "query", "query"]
    printed = [
        subprocess.run(
            f"{sys.executable} -m kvblend.cli {command}",
            shell=True, cwd=tmp_path, env={**os.environ, "KVBLEND_URL": url}, capture_output=True, text=True,
            check=True, timeout=300,
        ).stdout
        for command in commands
    ]  # fmt: skip
    line = re.compile(r"blended: of \d+ context tokens \d+ reused, \d+ selected, \d+ recomputed, first token after")
    assert line.search(" ".join(printed[2].split())), printed[2]
    assert "prefilled (asked for: reuse is none)" in " ".join(printed[4].split())
