"""What the pages say of the code is so: commands, settings, messages, snippets and links."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from kvblend.cli.app import app
from kvblend.core.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
PASSED_ON = {"serve", "calibrate"}
"""Commands that hand what is behind `--` to vLLM."""
NOT_OURS = {
    *("No matching distribution found for torch==", "+cpu"),
    "No package metadata was found for vllm",
    *("Compiling model again due to a load failure", "finalize_loading"),
}
"""Of pip, and of vLLM."""
FENCE = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^ {4,}(?:\w+=\S+ )*(?:\.venv/bin/)?kvblend (.+)$|`kvblend ([^`]+)`", re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `kvblend` command, without comments and what it is piped to."""
    for match in COMMAND.finditer(text.replace("\\\n", " ")):
        words = shlex.split(match[1] or match[2], comments=True)
        ends = [words.index(end) for end in ("&&", "|", "--") if end in words]
        yield words[: min(ends, default=len(words))]


@pages
def test_commands_and_their_options_are_there(page: Path) -> None:
    for words in commands(page.read_text()):
        command: Any = get_command(app)
        for word in words:
            if word.startswith("-"):
                known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
                assert word.split("=")[0] in known | {"--help", "--install-completion"}, (words, word)
            elif hasattr(command, "commands"):
                assert word in command.commands, words
                command = command.commands[word]


@pages
def test_settings_are_there(page: Path) -> None:
    test_switches = {"KILL_ROUNDS"}
    named = set(re.findall(r"KVBLEND_([A-Z_]*[A-Z])\b(?!_)", page.read_text()))
    assert named <= {name.upper() for name in Settings.model_fields} | test_switches


@pages
def test_snippets_can_be_read(page: Path) -> None:
    for language, snippet in FENCE.findall(page.read_text()):
        {"python": ast.parse, "json": json.loads, "yaml": yaml.safe_load}.get(language, str)(snippet)


@pages
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link


def test_messages_of_the_troubleshooting_page_are_the_codes_own() -> None:
    messages = "\n".join(message for path in source_files() for message in messages_of(path))
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    for row in re.findall(r"^\| (.+?) \|", text, re.MULTILINE):
        for quoted in re.findall(r"`([^`]+)`", row):
            for part in re.split(r"\.\.\.|\bN\b", quoted):
                assert part.strip() in messages or part.strip() in NOT_OURS, quoted


def source_files() -> Iterator[Path]:
    for folder in (ROOT / "src" / "kvblend").iterdir():
        if folder.is_symlink():
            yield from folder.resolve().rglob("*.py")


def messages_of(path: Path) -> Iterator[str]:
    """The texts of a file, with what an f-string fills in left out, and the names of what it defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "\0".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
