"""Every block of code on a page runs, or is what the code it speaks to takes."""

import ast
import json
import re
import shlex
import subprocess
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from vllm.config import KVTransferConfig

from kvblend.api.access.key_file import read_key_file
from kvblend.cli.engine import CONNECTOR, engine_command
from kvblend.core.plan import KVBlendParams
from kvblend.sdk.langchain import KVBlendRetriever
from tests.docs.page_blocks import DEFAULT_URL, FENCED, PASSAGE, shell
from tests.docs.test_pages import PAGES, ROOT, pages

RUN_ELSEWHERE = {
    ("README.md", "create_collection"): "tests/test_packaging.py, in an environment with the client alone",
    ("docs/how-to/haystack.md", "haystack"): "tests/docs/test_tutorial.py",
    ("docs/how-to/langchain.md", "create_agent"): "tests/docs/test_tutorial.py",
    ("docs/how-to/llamaindex.md", "llamaindex"): "tests/docs/test_tutorial.py, in an environment of its own",
}
"""Blocks, by a word of theirs, that another test runs."""


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.code.strip().splitlines()[0][:40]}"


def fenced(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        for indent, own, code in FENCED.findall(page.read_text()):
            if own == language:
                lines = [line.removeprefix(indent) for line in code.splitlines(keepends=True)]
                found.append(Block(str(page.relative_to(ROOT)), own, "".join(lines)))
    return found


@pytest.mark.parametrize("block", fenced("python"), ids=str)
def test_python_runs(block: Block, url: str) -> None:
    """With the service where it is; what a page takes for granted is given by name."""
    if any(block.page == page and word in block.code for page, word in RUN_ELSEWHERE):
        ast.parse(block.code)
        return
    given: dict[str, Any] = {
        "your_retriever": KVBlendRetriever(base_url=url, collection="handbook"),
        "passages": PASSAGE,
    }
    code = block.code.replace(DEFAULT_URL, url).replace("ChatKVBlend()", f"ChatKVBlend(base_url={url!r})")
    assert url in code or "kvblend.sdk" not in code, "it asks the service"
    exec(compile(code, str(block), "exec"), given)


@pytest.mark.parametrize("block", fenced("json"), ids=str)
def test_json_is_an_order_or_names_connectors(block: Block) -> None:
    shown = json.loads(block.code)
    if "kv_connector" in shown:
        named = [shown, *shown["kv_connector_extra_config"]["connectors"]]
        assert CONNECTOR["kv_connector"] in {KVTransferConfig(**each).kv_connector for each in named}
        return
    params = KVBlendParams.model_validate(shown["kv_transfer_params"]["kvblend"])
    assert params.encode or params.blend


def test_yaml_is_a_key_file(tmp_path: Path) -> None:
    """Pages show the first digits of a hash; of a page in parts all parts are one file."""
    by_page: dict[str, str] = {}
    for block in fenced("yaml"):
        by_page[block.page] = by_page.get(block.page, "") + block.code
    assert by_page
    for page, text in by_page.items():
        file = tmp_path / "keys.yaml"
        file.write_text(re.sub(r"([0-9a-f]{8})\.\.\.", lambda digits: digits[1] * 8, text))
        assert "acme" in read_key_file(file).tenants, page


@pages
def test_every_block_names_its_language(page: Path) -> None:
    """One that names none is held to nothing."""
    fences = re.findall(r"^ *```(\w*)$", page.read_text(), re.MULTILINE)
    assert len(fences) % 2 == 0 and all(fences[::2]) and not any(fences[1::2])


@pages
def test_no_block_is_of_another_language(page: Path) -> None:
    assert {language for _, language, _ in FENCED.findall(page.read_text())} <= {"python", "json", "yaml", "sh", "text"}


@pages
def test_shell_can_be_read(page: Path) -> None:
    fences = [code for _, language, code in FENCED.findall(page.read_text()) if language == "sh"]
    for block in [*shell(page), *fences]:
        script = re.sub(r"<[^>]+>", "something", block)
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pages
def test_make_and_pip_find_what_is_named(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for block in shell(page):
        assert set(re.findall(r"^ *make ([a-z-]+)", block, re.MULTILINE)) <= targets
    for names in re.findall(r"kvblend\[([a-z0-9, -]+)\]", page.read_text()):
        assert {name.strip() for name in names.split(",")} <= extras
    for file in re.findall(r"-f (\S+\.yaml)|(?:install|kubectl apply) \S+ (deploy/\S+)", page.read_text()):
        assert (ROOT / "".join(file)).exists(), file


@pages
def test_vllm_is_started_as_kvblend_serve_starts_it(page: Path) -> None:
    """Each option of a page's `vllm serve` is one of ours, with our value, or says only where it listens."""
    command = engine_command("MODEL", port=8001)
    ours = {name: value for name, value in pairwise(command) if name.startswith("--")}
    for block in shell(page):
        for line in re.findall(r"vllm serve (.*)", block.replace("\\\n", " "), re.DOTALL):
            given = shlex.split(line.replace("\n", " "))
            options = {name: value for name, value in zip(given, [*given[1:], ""], strict=True) if name[:2] == "--"}
            assert json.loads(options.pop("--kv-transfer-config")) == CONNECTOR
            assert options.pop("--load-format") == "kvblend"
            options.pop("--port", None)
            for name, value in options.items():
                assert name in ours and (value.startswith("--") or value == ours[name]), name
