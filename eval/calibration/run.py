"""One calibration from its questions to the file beside the model."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.progress import Progress
from transformers import AutoTokenizer

from kvblend.core.calibration import Calibration
from kvblend.core.calibration_file import write_calibration
from kvblend.core.settings import Settings
from kvblend.eval.calibration.curve import measure_kinds
from kvblend.eval.calibration.engine import EngineFor
from kvblend.eval.calibration.measure import ANSWER_TOKENS
from kvblend.eval.calibration.prompts import calibration_prompts
from kvblend.eval.questions.question_set import Question

__all__ = ["calibrate_model"]


def calibrate_model(
    model: str,
    questions: Sequence[Question],
    *,
    target_kl: float,
    target_agreement: float,
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
            *(len(own.token_ids) + ANSWER_TOKENS for own in prompt.kinds.values()),
            *(run.parts[-1].end for run in prompt.runs),
        )
        for prompt in prompts
    )
    with engine(longest) as running, Progress(console=console) as progress:
        measuring = measure_kinds(
            running, prompts, target_kl=target_kl, target_agreement=target_agreement, progress=progress
        )
        info, kinds = asyncio.run(measuring)
    calibration = Calibration(
        model=Path(model).name if Path(model).is_dir() else model,
        model_fingerprint=info.model_fingerprint,
        dtype=info.dtype,
        selector="probe",
        target_kl=target_kl,
        target_agreement=target_agreement,
        kinds=kinds,
        num_questions=len(prompts),
        num_passages=num_passages,
        passage_tokens=fmean(
            len(passage.token_ids) for prompt in prompts for passage in prompt.kinds["neutral"].passages
        ),
        created_at=time.time(),
    )
    return calibration, write_calibration(calibration, model=model, home=Settings().home_path)
