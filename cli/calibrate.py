"""`kvblend calibrate`: find the recompute ratio that a model needs, and keep it beside the model."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from kvblend.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from kvblend.core.calibration import Calibration

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
    agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of tokens, and of first ones, that are full prefill's.")
    ] = 0.9,
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
    """Find the recompute ratio that a model needs.

    Measures divergence from full prefill against recompute ratio, for each kind of text that passages are encoded
    behind, and writes the smallest ratios whose 95% upper bound meets the target beside the model, where `kvblend
    serve` finds them. Ends with status 3 where no ratio below 0.6 does for any kind: the model is then served by full
    prefill.

    Arguments after `--` go to vLLM as they are."""
    if engine_url and (context.args or dtype or tensor_parallel_size > 1):
        raise InvalidRequestError("a vLLM server that already runs takes no arguments of vLLM", param="engine-url")
    if control and not engine_url:
        raise InvalidRequestError("--control names the channel of an --engine-url, which is not given", param="control")
    from kvblend.cli.calibrate_engine import child_of, running_engine
    from kvblend.cli.models import resolve_model
    from kvblend.eval.calibration.run import calibrate_model
    from kvblend.eval.questions.question_set import load_questions

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
        target_agreement=agreement,
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
    if calibration.is_unable:
        sys.exit(NOT_MET)


def _exit(number: int, frame: object) -> None:
    """End on a signal by way of every `finally`, which end the child and delete its store."""
    sys.exit(128 + number)


def _table(calibration: Calibration) -> Table:
    from kvblend.core.calibration import smallest_ratio

    title = f"{Path(calibration.model).name}, {calibration.dtype}, {calibration.num_questions} questions"
    columns = (
        "recompute ratio",
        "mean KL",
        "95% upper bound",
        "agreement",
        "first tokens",
        "answers",
        "meets the target",
    )
    table = Table("encoded behind", *columns, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, own in calibration.kinds.items():
        for point in own.curve:
            meets = smallest_ratio([point], calibration.target_kl, calibration.target_agreement) is not None
            table.add_row(
                kind if point is own.curve[0] else "",
                f"{point.recompute_ratio:.2f}",
                f"{point.kl:.4f}",
                f"{point.kl_upper95:.4f}",
                f"{point.agreement:.3f}",
                f"{point.first_agreement:.2f}",
                f"{point.same_answer:.2f}",
                "yes" if meets else "no",
                end_section=point is own.curve[-1],
            )
    return table


def _conclusion(calibration: Calibration) -> str:
    from kvblend.core.calibration import MAX_RATIO

    target = f"a mean KL of at most {calibration.target_kl:g}"
    if calibration.is_unable:
        return f"no recompute ratio below {MAX_RATIO:g} meets {target}: the model will be served by full prefill"
    ratios = (
        f"{kind} {'recomputed in full' if own.recompute_ratio is None else format(own.recompute_ratio, 'g')}"
        for kind, own in calibration.kinds.items()
    )
    return f"{target} is met with 95% confidence at these recompute ratios, by what is in front: {', '.join(ratios)}"
