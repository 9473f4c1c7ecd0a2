"""One calibration from its questions to the file beside the model."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import fmean

from rich.console import Console
from transformers import AutoTokenizer

from kvblend.cli.bench.question_set import Question
from kvblend.cli.calibrate_curve import measure_curve
from kvblend.cli.calibrate_engine import CalibratedEngine, child_engine
from kvblend.cli.calibrate_measure import ANSWER_TOKENS
from kvblend.cli.calibrate_prompts import calibration_prompts
from kvblend.cli.progress import count_progress
from kvblend.core.calibration import Calibration, smallest_ratio
from kvblend.core.calibration_file import write_calibration
from kvblend.core.settings import Settings

__all__ = ["EngineFor", "calibrate_model", "child_of", "running_engine"]

EngineFor = Callable[[int], AbstractContextManager[CalibratedEngine]]
"""From the tokens that the longest prompt and answer, or passage behind its encode context, take to the engine."""

ROOM_TOKENS = 64
"""Beyond the longest sequence, for what vLLM itself keeps free."""


def running_engine(url: str, control: str | None) -> EngineFor:
    """A server that runs; its store is this process's settings' own."""

    @contextmanager
    def engine(num_tokens: int) -> Iterator[CalibratedEngine]:
        settings = Settings()
        yield CalibratedEngine(url, control or settings.control, settings)

    return engine


def child_of(
    model: str, *, dtype: str | None, tensor_parallel_size: int, extra: Sequence[str], console: Console
) -> EngineFor:
    """A server of this process's own, with room for the prompts and no more."""
    return lambda num_tokens: child_engine(
        model,
        dtype=dtype,
        max_model_len=num_tokens + ROOM_TOKENS,
        tensor_parallel_size=tensor_parallel_size,
        extra=extra,
        console=console,
    )


def calibrate_model(
    model: str,
    questions: Sequence[Question],
    *,
    target_kl: float,
    num_passages: int,
    passage_tokens: int,
    engine: EngineFor,
    console: Console,
) -> tuple[Calibration, Path]:
    """Measure, and write the file; returns what is in it and where it lies.

    Raises InvalidRequestError where a question has too few passages, EngineUnavailableError, and KVBlendError where a
    prompt cannot be blended.
    """
    prompts = calibration_prompts(
        AutoTokenizer.from_pretrained(model), questions, num_passages=num_passages, passage_tokens=passage_tokens
    )
    longest = max(
        max(
            len(prompt.token_ids) + ANSWER_TOKENS,
            *(len(passage.encode_context.token_ids) + len(passage.token_ids) for passage in prompt.passages),
        )
        for prompt in prompts
    )
    with engine(longest) as running, count_progress(console) as progress:
        info, curve = asyncio.run(measure_curve(running, prompts, target_kl=target_kl, progress=progress))
    calibration = Calibration(
        model=Path(model).name if Path(model).is_dir() else model,
        model_fingerprint=info.model_fingerprint,
        dtype=info.dtype,
        selector="probe",
        target_kl=target_kl,
        recompute_ratio=smallest_ratio(curve, target_kl),
        num_questions=len(prompts),
        num_passages=num_passages,
        passage_tokens=fmean(len(passage.token_ids) for prompt in prompts for passage in prompt.passages),
        curve=curve,
        created_at=time.time(),
    )
    return calibration, write_calibration(calibration, model=model, home=Settings().home_path)
