"""The demo's corpus, which every machine has: the documentation of Python's standard library, from its docstrings."""

import importlib
import inspect
import re
from types import ModuleType

__all__ = ["MODULES", "module_document"]

MODULES = (
    "base64", "bisect", "calendar", "collections", "contextlib", "csv", "fnmatch", "functools", "glob", "hashlib",
    "heapq", "itertools", "json", "math", "os", "os.path", "random", "re", "secrets", "shutil", "statistics", "string",
    "struct", "subprocess", "tempfile", "textwrap", "time", "urllib.parse", "uuid",
)  # fmt: skip

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of a default that is a function: another in every process, as no text to be stored may be."""


def module_document(name: str) -> str:
    """A module's documentation as Markdown: its own, then its public functions and classes under headings."""
    module = importlib.import_module(name)
    parts = [f"# {name}", inspect.getdoc(module) or ""]
    for member_name in _public_names(module):
        member = getattr(module, member_name, None)
        if not (inspect.isroutine(member) or inspect.isclass(member)) or inspect.getmodule(member) not in (
            module,
            None,
        ):
            continue
        documentation = member.__doc__ and inspect.getdoc(member)
        if documentation:
            parts += [f"## {name}.{member_name}{_signature(member)}", _as_text(documentation)]
    return "\n\n".join(part for part in parts if part)


def _public_names(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None) or [name for name in dir(module) if not name.startswith("_")]
    return sorted(set(names))


def _signature(member: object) -> str:
    if not inspect.isroutine(member):
        return ""
    try:
        return ADDRESS.sub("", str(inspect.signature(member)))
    except (TypeError, ValueError):  # written in C, without a signature
        return "()"


def _as_text(documentation: str) -> str:
    """Docstrings indent their examples, which Markdown would take for code; their headings are none of ours."""
    return "\n".join(f"\\{line}" if line.startswith("#") else line for line in documentation.splitlines())
