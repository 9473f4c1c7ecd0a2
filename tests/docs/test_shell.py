"""Shell lines of the pages and notebooks: the command line takes them, the API takes curl's, and what can run runs."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jsonschema import Draft202012Validator
from typer.main import get_command
from typer.testing import CliRunner

from kvblend.api import ServiceConfig, create_app
from kvblend.cli.app import app
from kvblend.core.settings import Settings, TracingSettings
from kvblend.sdk import Client
from tests.docs.page_blocks import DEFAULT_URL, FENCED, PASSAGE, shell
from tests.docs.test_pages import PAGES, ROOT

MORE = [ROOT / "benchmarks" / "README.md", ROOT / "eval" / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]
EVERY = [*PAGES, *MORE]
every = pytest.mark.parametrize("page", EVERY, ids=[str(page.relative_to(ROOT)) for page in EVERY])
OTHERS = {"PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PATH", "KEY", "OPENAI_BASE_URL", "VLLM_CPU_KVCACHE_SPACE"}
"""Variables that are not kvblend's, of pip, the shell, OpenAI's client and vLLM."""
TEST_SWITCHES = {"TEST_KILL_ROUNDS", "TEST_CAPABLE_MODEL", "TEST_SCHEMA_CASES"}
ASKS_A_SERVICE = {"calibration", "collections", "documents", "ingest", "jobs", "kv", "query", "search", "status"}
RUN_ELSEWHERE = {
    "README.md": "tests/test_packaging.py, in an environment with the client alone",
    "docs/tutorial.md": "tests/docs/test_tutorial.py",
}
GIVEN = {"COLLECTION": "handbook", "ID": "rules", "wiki": "wiki"}
"""What a page's placeholders stand for."""


def lines(page: Path) -> Iterator[str]:
    """Each command of a page's blocks for a shell, without comments; those that `&&` joins one by one."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        blocks = ["".join(re.findall(r"^ {4}\S.*\n?", cell.source, re.M)) for cell in cells if cell.cell_type != "code"]
        blocks += ["\n".join(re.findall(r"^!(.*)$", cell.source, re.M)) for cell in cells if cell.cell_type == "code"]
    else:
        blocks = [*shell(page), *(code for _, language, code in FENCED.findall(text) if language == "sh")]
    for block in blocks:
        given = re.sub(r"<[^>\n]+>", "something", block)
        for line in whole(given.replace("\\\n", " ").splitlines()):
            yield from (part.strip() for part in re.split(r" && | \| ", line) if part.strip())


def whole(parts: list[str]) -> Iterator[str]:
    """Lines, those that a quotation joins as one."""
    begun = ""
    for part in parts:
        begun = f"{begun} {part}" if begun else part
        try:
            shlex.split(begun, comments=True)
        except ValueError:
            continue
        yield begun
        begun = ""
    assert not begun, begun


def words(line: str) -> tuple[dict[str, str], list[str]]:
    """The variables that a command is given, and its words."""
    split, variables = shlex.split(line, comments=True), dict[str, str]()
    split = split[: split.index(">")] if ">" in split else split
    while split and (assigned := re.fullmatch(r"([A-Za-z_]+)=(.*)", split[0])):
        variables[assigned[1]] = assigned[2]
        split.pop(0)
    return variables, split


def commands(page: Path) -> list[list[str]]:
    """What the pages give to `kvblend`."""
    found = [words(line)[1] for line in lines(page)]
    return [each[1:] for each in found if each and Path(each[0]).name == "kvblend"]


@every
def test_kvblend_takes_each_line(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command line's own parser: names, values and their bounds, and that nothing required is missing."""
    monkeypatch.chdir(tmp_path)
    for each in commands(page):
        for word in each:
            if re.search(r"\.(json|jsonl|gz)$|^FILE$|/$", word):  # what must be there
                Path(word).mkdir(exist_ok=True) if word.endswith("/") else Path(word).touch()
        command: Any = get_command(app)
        context = None
        rest = each
        while True:
            context = command.make_context(command.name, [*rest], parent=context, ignore_unknown_options=False)
            if not hasattr(command, "commands"):
                break
            name, command, rest = command.resolve_command(context, rest)
            assert command is not None, (each, name)


def test_a_line_that_is_wrong_is_found() -> None:
    """The control: a value out of bounds, one that is no choice, and an argument too few."""
    for wrong in ("query Why? --top-k 0", "query Why? --mode fast", "documents show handbook"):
        command: Any = get_command(app)
        context, rest = None, wrong.split()
        with pytest.raises(Exception, match=r"greater than or equal|is not one of|Missing"):
            while True:
                context = command.make_context(command.name, [*rest], parent=context)
                _, command, rest = command.resolve_command(context, rest)


@every
def test_variables_are_read_by_somebody(page: Path) -> None:
    known = {f"KVBLEND_{name.upper()}" for name in Settings.model_fields} | OTHERS | TEST_SWITCHES
    known |= {f"OTEL_{name.upper()}" for name in TracingSettings.model_fields}
    for line in lines(page):
        variables, rest = words(line.removeprefix("export "))
        if rest and not rest[0].startswith(("make", "<")):
            assert variables.keys() <= known, line


@every
def test_make_has_each_target(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make (?:[A-Z_]+=\S+ )*([a-z][a-z-]+)", page.read_text()))
    named |= {word for line in lines(page) for word in words(line)[1][1:2] if words(line)[1][0] == "make"}
    assert {name for name in named if "=" not in name} <= targets


def curls(page: Path) -> Iterator[tuple[str, str, Any]]:
    """Method, path and body of each line by which a page asks the service."""
    for line in lines(page):
        _, each = words(line)
        if each[:1] == ["curl"] and any(word.startswith(DEFAULT_URL) for word in each):
            body = json.loads(each[each.index("--json") + 1]) if "--json" in each else None
            path = next(word for word in each if word.startswith(DEFAULT_URL)).removeprefix(DEFAULT_URL)
            method = each[each.index("-X") + 1] if "-X" in each else "GET" if body is None else "POST"
            yield method, path.partition("?")[0], body


def test_the_api_takes_what_curl_sends() -> None:
    """By the service's own schema."""
    config = ServiceConfig("none", "none", [("http://127.0.0.1:1", "ipc:///none")], Settings())
    schema: dict[str, Any] = create_app(config).openapi()
    asked = [(page, *each) for page in PAGES for each in curls(page)]
    assert len(asked) >= 5
    for page, method, path, body in asked:
        routes = [
            methods[method.lower()]
            for route, methods in schema["paths"].items()
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route), path) and method.lower() in methods
        ]
        assert routes, f"{page.name}: {method} {path}"
        if body is not None:
            own = routes[0]["requestBody"]["content"]["application/json"]["schema"]
            Draft202012Validator({**own, "components": schema["components"]}).validate(body)


@pytest.mark.parametrize("page", [page for page in EVERY if commands(page)], ids=lambda page: page.name)
def test_commands_that_ask_a_service_run(
    page: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model_path: Path
) -> None:
    """In their order, with a page's placeholders given; and what `kv size` reckons, of a model that is here."""
    if str(page.relative_to(ROOT)) in RUN_ELSEWHERE:
        return
    monkeypatch.chdir(tmp_path)
    for each in commands(page):
        for word in each:
            if word.endswith("/"):
                Path(word).mkdir(exist_ok=True)
                (Path(word) / "signs.txt").write_text(PASSAGE)
        given = [GIVEN.get(word, str(demo_model_path) if word.startswith("Qwen/") else word) for word in each]
        if given[0] in ASKS_A_SERVICE:
            ended = CliRunner().invoke(app, given, env={"KVBLEND_URL": url, "COLUMNS": "120"}, catch_exceptions=False)
            assert ended.exit_code == 0, (each, ended.output)


def test_curl_is_answered(url: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for line in re.findall(rf"^    (curl .*{DEFAULT_URL}.*)$", text, re.MULTILINE):
        command = line.replace(DEFAULT_URL, url).replace("curl ", "curl --silent --show-error --fail-with-body ")
        ended = subprocess.run(
            command, shell=True, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 0 and json.loads(ended.stdout), (line, ended.stdout, ended.stderr)
    with Client(url) as client:
        assert client.get_collection("wiki").name == "wiki"
