"""Makes docs/peer_benchmarks.md of what `make bench-peers` found: `make reference`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "peer_benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"

HEAD = """\
# Benchmarks that others wrote

`make bench-peers` installs other projects' benchmarks into `.cache/peers/venv` and runs them against kvblend and
against vLLM alone, one server at a time, with the same model, dtype and threads. This page is made of its last results
(`benchmarks/results/peers.json`) by `make reference`; what our own benchmarks say is in
[benchmarks/](../benchmarks/README.md).
"""


def reference() -> str:
    """Return docs/peer_benchmarks.md as it should be."""
    if not RESULTS.exists():
        return f"{HEAD}\nIt has not been run on a quiet machine yet: there are no results.\n"
    found = json.loads(RESULTS.read_text())
    machine = found["machine"]
    shape = (
        f"{found['date']}: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} of them vLLM's, "
        f"{machine['dtype']}, the model `{found['model']}`. Each request asks a question over {found['documents']} "
        f"passages of a pool, in an order of its own, for {found['answer_tokens']} tokens; {found['requests']} "
        f"requests by {found['clients']} clients. kvblend has the passages' KV stored, as after an ingest, vLLM its "
        f"prefix cache. Times are milliseconds."
    )
    note = found.get("note", "")
    return "\n".join([HEAD, shape, note, "", *_table(found), "", "## Commands", "", *_commands(found)])


def _table(found: dict[str, Any]) -> Iterator[str]:
    yield "| tool | server | documents | TTFT p50 | TTFT p95 | requests/s | failed | kvblend's answers |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in found["rows"]:
        told = row["found"]
        numbers = (
            [f"{told['ttft_p50_ms']:,.0f}", f"{told['ttft_p95_ms']:,.0f}", f"{told['requests_per_s']:.2f}"]
            if told
            else ["did not run", "", ""]
        )
        failed = str(told["num_failed"]) if told else ""
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(row.get("outcomes", {}).items()))
        yield f"| {row['tool']} {row['version']} | {row['server']} | {row['documents']} | {' | '.join(numbers)} | " + (
            f"{failed} | {outcomes} |"
        )
    for name, reason in found["missing"].items():
        yield f"| {name} | | | not installed: {reason} | | | | |"


def _commands(found: dict[str, Any]) -> Iterator[str]:
    yield (
        "Each runs in the folder named beside it, where `make bench-peers` leaves the requests that it made for the "
        "tool (`prompts.jsonl`, `payloads.jsonl`) and what the tool wrote. `$URL` is the service's, `$MODEL` the name "
        "that `$URL/v1/models` tells, or the model's folder where a tokenizer is asked for.\n"
    )
    for row in found["rows"]:
        if row["server"] == "kvblend":
            yield f"{row['tool']}, in `{row['folder']}`:\n\n    {row['command']}\n"


if __name__ == "__main__":
    PAGE.write_text(reference())
