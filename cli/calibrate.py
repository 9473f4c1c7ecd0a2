"""`kvblend calibrate`: find the recompute ratio that a model needs, and keep it beside the model."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from kvblend.core.calibration import MAX_RATIO, Calibration
from kvblend.core.errors import InvalidRequestError

__all__ = ["calibrate"]

MIN_QUESTIONS = 5
NOT_MET = 3
"""Exit status where no ratio meets the target."""


def calibrate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder or Hugging Face name; `demo` is SmolLM2-135M, `qwen-coder` Qwen2.5-Coder-1.5B."
        ),
    ],
    target: Annotated[float, typer.Option(min=1e-6, help="Largest mean KL to full prefill, in nats an answer token.")],
    questions: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A JSON file in MuSiQue's shape; else our own set.")
    ] = None,
    num_questions: Annotated[
        int, typer.Option(min=MIN_QUESTIONS, help="So many of the first questions, or as many as there are.")
    ] = 30,
    num_passages: Annotated[int, typer.Option(min=1, max=64, help="Passages in a prompt.")] = 5,
    passage_tokens: Annotated[int, typer.Option(min=16, max=2048, help="Longer passages are cut.")] = 256,
    engine_url: Annotated[str | None, typer.Option(help="A running vLLM server of this model, not a child.")] = None,
    control: Annotated[str | None, typer.Option(help="Its control channel; KVBLEND_CONTROL.")] = None,
    dtype: Annotated[str | None, typer.Option(help="vLLM's dtype, as `kvblend serve` takes it.")] = None,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="As `kvblend serve` takes it.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the calibration as one JSON object.")] = False,
) -> None:
    """Measure divergence from full prefill against recompute ratio, and write the smallest ratio whose 95% upper bound
    meets the target beside the model, where `kvblend serve` finds it. Ends with status 3 where no ratio below 0.6 does:
    the model is then served by full prefill. Arguments after `--` go to vLLM as they are."""
    if engine_url and (context.args or dtype or tensor_parallel_size > 1):
        raise InvalidRequestError("a vLLM server that already runs takes no arguments of vLLM", param="engine-url")
    if control and not engine_url:
        raise InvalidRequestError("--control names the channel of an --engine-url, which is not given", param="control")
    from kvblend.cli.bench.question_set import load_questions
    from kvblend.cli.calibrate_run import calibrate_model, child_of, running_engine
    from kvblend.cli.models import resolve_model

    signal.signal(signal.SIGTERM, _exit)
    console = Console(stderr=True)
    asked = load_questions(questions)[:num_questions]
    if len(asked) < MIN_QUESTIONS:
        raise InvalidRequestError(f"{questions} has {len(asked)} questions; {MIN_QUESTIONS} are the least")
    model = resolve_model(model)
    engine = (
        running_engine(engine_url, control)
        if engine_url
        else child_of(
            model, dtype=dtype, tensor_parallel_size=tensor_parallel_size, extra=context.args, console=console
        )
    )
    calibration, path = calibrate_model(
        model,
        asked,
        target_kl=target,
        num_passages=num_passages,
        passage_tokens=passage_tokens,
        engine=engine,
        console=console,
    )
    if as_json:
        print(calibration.model_dump_json())
    else:
        Console().print(_table(calibration))
    console.print(_conclusion(calibration), markup=False, highlight=False)
    console.print(f"written to {path}", markup=False, highlight=False, soft_wrap=True)
    if calibration.recompute_ratio is None:
        sys.exit(NOT_MET)


def _exit(number: int, frame: object) -> None:
    """End on a signal by way of every `finally`, which end the child and delete its store."""
    sys.exit(128 + number)


def _table(calibration: Calibration) -> Table:
    title = f"{Path(calibration.model).name}, {calibration.dtype}, {calibration.num_questions} questions"
    table = Table("recompute ratio", "mean KL", "95% upper bound", "agreement", "meets the target", title=title)
    for column in table.columns:
        column.justify = "right"
    for point in calibration.curve:
        table.add_row(
            f"{point.recompute_ratio:.2f}",
            f"{point.kl:.4f}",
            f"{point.kl_upper95:.4f}",
            f"{point.agreement:.3f}",
            "yes" if point.kl_upper95 <= calibration.target_kl else "no",
        )
    return table


def _conclusion(calibration: Calibration) -> str:
    target = f"a mean KL of at most {calibration.target_kl:g}"
    if calibration.recompute_ratio is None:
        return f"no recompute ratio below {MAX_RATIO:g} meets {target}: the model will be served by full prefill"
    return f"a recompute ratio of {calibration.recompute_ratio:g} meets {target} with 95% confidence"
