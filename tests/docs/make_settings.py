"""Makes docs/settings.md of the settings themselves: `make reference`."""

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from kvblend.core.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

HEAD = """\
# Settings

The service, the connector and the command read these from the environment. Sizes are in bytes, times in seconds. This
page is made of the code (`core/settings.py`) by `make reference`.
"""
TRACING = "`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_PROTOCOL`, `OTEL_SERVICE_NAME`"
TAIL = f"""
Settings of other packages that matter here:

| variable | what it does |
|---|---|
| `VLLM_CPU_KVCACHE_SPACE` | GiB of KV cache of vLLM on a CPU. |
| `OMP_NUM_THREADS` | Threads of vLLM and torch on a CPU. On shared cores fewer are faster. |
| {TRACING} | Where [traces](operations.md#traces) go, by `http/protobuf` or `grpc`, and in whose name. |
| `HF_HUB_OFFLINE` | 1: the Hugging Face hub is never asked; the demo's models come from the package index. |
"""
DERIVED = {"disk_path": "`kv` in `KVBLEND_HOME`"}
"""Defaults that follow from another setting."""


def reference() -> str:
    """Return docs/settings.md as it should be."""
    return "\n".join([HEAD, "| variable | default | what it does |\n|---|---|---|", *_rows(), TAIL])


def _rows() -> Iterator[str]:
    docstrings = _docstrings()
    for name, field in Settings.model_fields.items():
        default = DERIVED.get(name) or ("none" if field.default is None else f"`{field.default}`")
        yield f"| `KVBLEND_{name.upper()}` | {default} | {' '.join(docstrings[name].split())} |"


def _docstrings() -> dict[str, str]:
    """What stands below each field that has something below it."""
    (settings,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(settings, ast.ClassDef)
    return {
        field.target.id: ast.literal_eval(below.value)
        for field, below in pairwise(settings.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr)
    }


if __name__ == "__main__":
    PAGE.write_text(reference())
