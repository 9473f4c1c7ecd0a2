"""The command `kvblend bench needle`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kvblend.cli.bench.known import require_known
from kvblend.cli.bench.table import rows_table

__all__ = ["needle"]

ENCODES = ["alone", "preamble", "warm", "warm_neutral"]
SELECTORS = ["none", "probe", "cacheblend_v"]
RATIOS = [0.15]
TABLE_COLUMNS = (
    "selector",
    "encode",
    "recompute_ratio",
    "kind",
    "num_cases",
    "same_answer",
    "same_answer_ci95",
    "same_facts",
    "correct",
    "kept",
    "kl",
)


def needle(
    model: Annotated[str, typer.Argument(help="A model folder or hub name; `demo` is the demo model.")] = "demo",
    num_cases: Annotated[int, typer.Option(min=1)] = 200,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only those of the cases: one, chain, choice, pair; repeatable.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A JSON file in MuSiQue's shape, for its passages."),
    ] = None,
    num_passages: Annotated[int, typer.Option(min=3, max=64)] = 5,
    passage_tokens: Annotated[int, typer.Option(min=64, max=4096)] = 220,
    seed: Annotated[int, typer.Option(help="Makes other cases.")] = 0,
    encode: Annotated[list[str] | None, typer.Option(help="What passages are encoded behind; repeatable.")] = None,
    selector: Annotated[list[str] | None, typer.Option(help="Repeatable; none, probe and cacheblend_v.")] = None,
    ratio: Annotated[list[float] | None, typer.Option(min=0, max=1, help="Ratios, repeatable; 0.15.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; where not given, that of `kvblend serve` here.")
    ] = None,
    output: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the rows here as JSON lines too.")] = None,
    state: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Measurements done, to go on from; beside the output.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a row.")] = False,
) -> None:
    """Facts put into real text: how often a blend's answer is full prefill's, where it needs one fact or two."""
    from kvblend.cli.bench.served_dtype import served_dtype
    from kvblend.cli.models import resolve_model
    from kvblend.eval.needles.cases import KINDS
    from kvblend.eval.needles.needle_bench import NeedleSettings, needle_bench
    from kvblend.eval.quality.encodes import ENCODES as KNOWN_ENCODES
    from kvblend.eval.rivals import LAB_SELECTORS

    encodes, selectors, kinds = encode or ENCODES, selector or SELECTORS, kind or list(KINDS)
    require_known("--selector", selectors, LAB_SELECTORS)
    require_known("--encode", encodes, KNOWN_ENCODES)
    require_known("--kind", kinds, KINDS)
    path = resolve_model(model)
    dtype = served_dtype(path, dtype)
    rows = needle_bench(
        path,
        NeedleSettings(text=text, num_passages=num_passages, passage_tokens=passage_tokens, seed=seed, dtype=dtype),
        num_cases=num_cases,
        kinds=kinds,
        encodes=encodes,
        selectors=selectors,
        ratios=ratio or RATIOS,
        state_path=state or (output and output.with_suffix(".state.jsonl")),
        console=Console(stderr=True),
    )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if output is not None:
        output.write_text(lines)
    if as_json:
        sys.stdout.write(lines)
    else:
        Console().print(rows_table(rows, TABLE_COLUMNS, title=f"{rows[0]['num_cases']} cases, {dtype}"))
