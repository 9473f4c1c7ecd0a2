"""What the tutorial and the pages on frameworks have one type runs, against a service without a model."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvblend.sdk import Client
from kvblend.sdk.langchain import KVBlendRetriever
from tests.api.scripted_service import scripted_service
from tests.environments import python_with

DOCS = Path(__file__).parents[2] / "docs"
DEFAULT_URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def url(demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tutorial")
    with scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path) as service:
        yield service.url


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def run(code: str, url: str, **names: Any) -> dict[str, Any]:
    """Run a page's snippet, with the service where it is; returns what it has named."""
    assert DEFAULT_URL in code
    exec(compile(code.replace(DEFAULT_URL, url), "snippet", "exec"), names)
    return names


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
    (code,) = snippets("tutorial.md")
    assert run(code, url)["report"].outcome == "blended"


@pytest.fixture(scope="module")
def handbook(url: str) -> str:
    """The service, with the collection that the pages ask."""
    with Client(url) as client:
        client.create_collection("handbook")
        client.wait(client.add_document("handbook", "The harbour master signs the report.", id="rules"))
    return url


def test_the_snippets_for_langchain_run(handbook: str) -> None:
    own, ours, agent = snippets("how-to/langchain.md")
    (document,) = run(ours, handbook)["retriever"].invoke("Who signs the report?")
    assert "harbour master" in document.page_content
    retriever = KVBlendRetriever(base_url=handbook, collection="handbook")
    assert run(own, handbook, your_retriever=retriever)["message"].content
    assert run(agent, handbook)["messages"][-1].content


def test_the_snippet_for_haystack_runs(handbook: str) -> None:
    (snippet,) = snippets("how-to/haystack.md")
    assert run(snippet, handbook)["reply"].meta["kvblend"]["report"]["outcome"] == "blended"


@pytest.mark.extended
def test_the_snippet_for_llamaindex_runs(handbook: str) -> None:
    python, variables = python_with("llamaindex")
    (snippet,) = snippets("how-to/llamaindex.md")
    command = [python, "-c", snippet.replace(DEFAULT_URL, handbook)]
    answer, report = subprocess.run(
        command, env=variables, capture_output=True, text=True, check=True, timeout=300
    ).stdout.splitlines()
    assert answer.endswith("['rules']") and "'outcome': 'blended'" in report
