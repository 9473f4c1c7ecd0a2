"""What the vLLM of this environment lacks of all that the connector uses of it: printed as a list in JSON.

Names are those that the connector's modules import. Its methods must be methods of vLLM's base class, and take what
vLLM gives these.
"""

import ast
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import kvblend

CONNECTOR = Path(kvblend.__path__[0]) / "vllm_connector"


def missing_names() -> Iterator[str]:
    """Names that cannot be imported, each with the file that does."""
    for path in sorted(CONNECTOR.resolve().rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != "vllm":
                continue
            assert node.module is not None
            try:
                module: ModuleType | None = importlib.import_module(node.module)
            except ImportError:
                module = None
            for alias in node.names:
                if not hasattr(module, alias.name):
                    yield f"{node.module}.{alias.name} is gone ({path.name})"


def changed_methods() -> Iterator[str]:
    """Methods of the connector that vLLM would not call, or call otherwise."""
    from kvblend.vllm_connector.connector import KVBlendConnector

    bases = KVBlendConnector.__mro__[1:]
    for name, own in vars(KVBlendConnector).items():
        if name.startswith("_") or not inspect.isfunction(own) or name in ("scheduler", "worker"):
            continue
        theirs = next((vars(base)[name] for base in bases if name in vars(base)), None)
        if theirs is None:
            yield f"{name} is no method of vLLM's connectors any more"
            continue
        taken = inspect.signature(own).parameters.values()
        if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken):
            continue
        given = inspect.signature(theirs).parameters.values()
        named = [each.name for each in given if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        if len(named) != len(list(taken)):
            yield f"{name} is given {', '.join(named[1:]) or 'nothing'}"


if __name__ == "__main__":
    problems = list(missing_names())
    print(json.dumps(problems or list(changed_methods())))
