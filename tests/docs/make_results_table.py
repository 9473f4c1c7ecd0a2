"""Makes the README's table of two machines of benchmarks/results: `make reference`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "README.md"
BEGIN, END = "<!-- table: ttft -->\n", "<!-- end of table -->"

MACHINES = {"AMD EPYC, AVX-512": "avx512", "Intel Xeon, AMX": "amx"}
MODELS = {"SmolLM2-135M": ("ttft", (3000, 6000)), "Qwen2.5-Coder-1.5B": ("ttft_qwen", (3000,))}
RATIOS = (0.05, 0.15)


def reference() -> str:
    """Return README.md as it should be."""
    before, rest = PAGE.read_text().split(BEGIN)
    return "".join([before, BEGIN, *(f"{row}\n" for row in _table()), END, rest.split(END)[1]])


def _table() -> Iterator[str]:
    blends = " | ".join(f"blend, {ratio:.0%} recomputed" for ratio in RATIOS)
    yield f"| machine | model | context tokens | full prefill | vLLM's prefix cache | {blends} |"
    yield "|---|---|---|---|---|" + "---|" * len(RATIOS)
    for machine, suffix in MACHINES.items():
        for model, (prefix, lengths) in MODELS.items():
            result = json.loads((ROOT / "benchmarks" / "results" / f"{prefix}_{suffix}.json").read_text())
            assert result["machine"]["cores"] == result["machine"]["threads"] == 2
            assert result["machine"]["dtype"] == "bfloat16"
            for length in lengths:
                rows = [row for row in result["results"] if row["context_tokens"] == length]
                full, cached = (_seconds(rows, mode) for mode in ("full_prefill", "prefix_cache"))
                blended = [_seconds(rows, "blend", ratio) for ratio in RATIOS]
                cells = [f"{seconds:.2f} s (**{full / seconds:.1f}**)" for seconds in blended]
                yield f"| {' | '.join([machine, model, f'{length:,}', f'{full:.2f} s', f'{cached:.2f} s', *cells])} |"


def _seconds(rows: list[dict[str, Any]], mode: str, ratio: float | None = None) -> float:
    (row,) = (row for row in rows if row["mode"] == mode and ratio in (None, row["recompute_ratio"]))
    return float(row["ttft_ms_p50"]) / 1000


if __name__ == "__main__":
    PAGE.write_text(reference())
