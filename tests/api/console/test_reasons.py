"""Every reason that a report can have has plain words in the console."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

from playwright.sync_api import Page

ROOT = Path(__file__).parents[3]
FOLDERS = ("api/engine", "api/http/routes", "api/quality", "vllm_connector/scheduler", "vllm_connector/worker")
SCRATCH_PAGES = ROOT / "vllm_connector" / "engine" / "scratch_pages.py"
NAMES = {"prefill_reason", "prefilled", "reason", "NO_DOCUMENTS"}
CALLS = {"_give_up", "fail", "give_up", "refuse"}
FUNCTIONS = {"_check_salt", "_prefill_reason", "reserve"}
"""What raises or returns nothing but reasons."""
FALLBACK = "The whole context was computed by vLLM."


def reasons_of(source: str) -> Iterator[str]:
    """The reasons that a module writes, with 7 in the place of each value."""
    for node in ast.walk(ast.parse(source)):
        for value in _values(node):
            yield from _texts(value)


def _values(node: ast.AST) -> list[ast.expr]:
    """Expressions that are a reason, or hold some."""
    match node:
        case ast.keyword(arg=name, value=value) if name in NAMES:
            return [value]
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in NAMES:
            return [value]
        case ast.Assign(targets=[ast.Subscript(value=ast.Attribute(attr="_refused"))], value=value):
            return [value]
        case ast.Call(func=ast.Attribute(attr=name), args=values) if name in CALLS:
            return values
        case ast.FunctionDef(name=name) if name in FUNCTIONS:
            ends = [each.value if isinstance(each, ast.Return) else each.exc for each in ast.walk(node)
                    if isinstance(each, ast.Return | ast.Raise)]  # fmt: skip
            return [value for value in ends if value is not None]
        case _:
            return []


def _texts(value: ast.expr) -> Iterator[str]:
    """The outermost texts of several words in an expression."""
    match value:
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "7" for part in parts)
        case ast.Constant(value=str(text)) if " " in text:
            yield text
        case _:
            for child in ast.iter_child_nodes(value):
                if isinstance(child, ast.expr):
                    yield from _texts(child)


def all_reasons() -> set[str]:
    files = [SCRATCH_PAGES, *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]
    found = {reason for file in files for reason in reasons_of(file.read_text())}
    return {"asked for: reuse is none" if reason == "asked for: reuse is 7" else reason for reason in found}


def test_each_reason_is_told_in_plain_words(lone_url: str, open_page: Callable[..., Page]) -> None:
    page = open_page(lone_url, strict=False)
    code = "async (reason) => (await import('/console/reasons.js')).plainReason(reason).title"
    reasons = all_reasons()
    assert not [reason for reason in sorted(reasons) if page.evaluate(code, reason) == FALLBACK]
    assert page.evaluate(code, "the moon was full") == FALLBACK
    for known in (
        "it was preempted",
        "the step failed: 7",
        "context of 7 tokens",
        "goes to other engines",
        "come over",
    ):
        assert [reason for reason in reasons if known in reason], f"{known!r} is in the sources no more"
