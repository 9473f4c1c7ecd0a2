"""The command `kvblend bench quality`."""

import json
import signal
import sys
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kvblend.cli.bench.known import require_known
from kvblend.cli.bench.table import rows_table
from kvblend.eval.questions.half import Half

__all__ = ["quality"]

ENCODES = ["alone", "preamble", "warm"]
RATIOS = [0.05, 0.15, 0.30]
TABLE_COLUMNS = (
    "selector",
    "encode",
    "recompute_ratio",
    "flops_ratio",
    "kl",
    "kl_ci95",
    "agreement",
    "f1",
    "same_sentence",
    "kl_fraction",
)


def quality(
    model: Annotated[str, typer.Argument(help="A model folder or hub name; `demo` is the demo model.")] = "demo",
    questions: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A JSON file in MuSiQue's or SQuAD's shape; our own small set."),
    ] = None,
    mix: Annotated[
        bool,
        typer.Option(
            "--mix", help="Ask the mixes of a SQuAD file: of five passages two are neighbours in one article."
        ),
    ] = False,
    num_questions: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    half: Annotated[Half, typer.Option(help="Which half of the questions.")] = "all",
    num_passages: Annotated[int, typer.Option(min=1, max=64)] = 5,
    order: Annotated[
        str, typer.Option(help="How passages stand in the prompt: rank, reversed, document, fit.")
    ] = "rank",
    passage_tokens: Annotated[int, typer.Option(min=16, max=4096)] = 220,
    encode: Annotated[list[str] | None, typer.Option(help="What passages are encoded behind; repeatable.")] = None,
    selector: Annotated[list[str] | None, typer.Option(help="Repeatable; all where not given.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="ENCODE/SELECTOR", help="Just these pairs, not every encode with every selector."),
    ] = None,
    full_prefill: Annotated[
        bool, typer.Option("--full-prefill", help="Full prefill's own answers and no method's, as to compare orders.")
    ] = False,
    ratio: Annotated[list[float] | None, typer.Option(min=0, max=1, help="Recompute ratios; repeatable.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; where not given, that of `kvblend serve` here.")
    ] = None,
    output: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the rows here as JSON lines too.")] = None,
    state: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Measurements done, to go on from; beside the output.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw KL against FLOPs into this PNG.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Measure nothing: the rows of the questions that the state has complete.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a row.")] = False,
) -> None:
    """Divergence, agreement and F1 of every selector against full prefill, at counted FLOPs, on a question set."""
    from kvblend.cli.bench.served_dtype import served_dtype
    from kvblend.cli.models import resolve_model
    from kvblend.eval.quality.encodes import ENCODES as KNOWN_ENCODES
    from kvblend.eval.quality.orders import ORDERS
    from kvblend.eval.quality.plot import quality_plot
    from kvblend.eval.quality.quality_bench import QualitySettings, quality_bench
    from kvblend.eval.rivals import LAB_SELECTORS

    if method and (encode or selector):
        raise typer.BadParameter("give either methods, or encodes and selectors", param_hint="--method")
    if full_prefill and (method or encode or selector):
        raise typer.BadParameter("give either this or methods, encodes and selectors", param_hint="--full-prefill")
    selectors = selector or [name for name in LAB_SELECTORS if name != "all"]
    every = [] if full_prefill else list(product(encode or ENCODES, selectors))
    methods = [_pair(text) for text in method] if method else every
    require_known("--method" if method else "--encode", {encode for encode, _ in methods}, KNOWN_ENCODES)
    require_known("--method" if method else "--selector", {selector for _, selector in methods}, LAB_SELECTORS)
    signal.signal(signal.SIGTERM, _interrupt)
    require_known("--order", [order], ORDERS)
    path = resolve_model(model)
    dtype = served_dtype(path, dtype)
    rows = quality_bench(
        path,
        QualitySettings(
            questions=questions,
            mix=mix,
            num_passages=num_passages,
            passage_tokens=passage_tokens,
            half=half,
            dtype=dtype,
            order=order,
        ),
        methods=methods,
        ratios=ratio or RATIOS,
        num_questions=num_questions,
        state_path=state or (output and output.with_suffix(".state.jsonl")),
        only_report=report,
        console=Console(stderr=True),
    )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if output is not None:
        output.write_text(lines)
    if plot is not None:
        quality_plot(rows, plot)
    if as_json:
        sys.stdout.write(lines)
    else:
        Console().print(rows_table(rows, TABLE_COLUMNS, title=f"{rows[0]['num_questions']} questions, {dtype}"))


def _interrupt(number: int, frame: object) -> None:
    """Stop measuring and report, as on Ctrl-C."""
    raise KeyboardInterrupt


def _pair(method: str) -> tuple[str, str]:
    encode, _, selector = method.partition("/")
    return encode, selector
