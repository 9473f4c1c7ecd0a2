"""Text that every machine has: the standard library's docstrings."""

import importlib
import inspect
from typing import Any

__all__ = ["bench_passages"]

MODULES = (
    "argparse",
    "asyncio",
    "collections",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "email",
    "heapq",
    "inspect",
    "io",
    "itertools",
    "json",
    "logging",
    "pathlib",
    "random",
    "re",
    "shutil",
    "socket",
    "statistics",
    "string",
    "subprocess",
    "tempfile",
    "threading",
    "typing",
    "unittest",
    "urllib.parse",
    "zipfile",
)


def bench_passages(tokenizer: Any, *, num_passages: int, passage_tokens: int) -> list[list[int]]:
    """Token ids of passages of exactly `passage_tokens` tokens. Raises ValueError where the text runs out."""
    ids: list[int] = []
    for name in MODULES:
        module = importlib.import_module(name)
        docs = [inspect.getdoc(module) or ""]
        docs += [
            f"{key}: {inspect.getdoc(value)}" for key, value in sorted(vars(module).items()) if inspect.isroutine(value)
        ]
        ids += tokenizer("\n\n".join(docs), add_special_tokens=False).input_ids
    if len(ids) < num_passages * passage_tokens:
        raise ValueError(
            f"{num_passages} passages of {passage_tokens} tokens are more than the {len(ids)} tokens of text"
        )
    return [ids[i * passage_tokens : (i + 1) * passage_tokens] for i in range(num_passages)]
