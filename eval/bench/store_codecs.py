"""What each codec takes, how fast it is, and what it adds to a blend's error, on a model's real KV."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from kvblend.core.settings import CodecName
from kvblend.eval.quality.lab_model import LabModel
from kvblend.eval.questions.question_set import load_questions
from kvblend.store.codecs import codec_of, codec_spec

__all__ = ["CODECS", "codec_rows"]

CODECS: tuple[CodecName, ...] = get_args(CodecName)
ENCODE, SELECTOR = "warm_neutral", "probe"
TIMED_REPEATS = 3


@dataclass
class _Seen:
    """What one codec did to the passages of all questions so far. Bytes are of the numbers in bf16, and stored."""

    kl: list[float] = field(default_factory=list)
    num_bytes: int = 0
    stored_bytes: int = 0
    encode_s: float = 0.0
    decode_s: float = 0.0
    key_errors: list[float] = field(default_factory=list)
    value_errors: list[float] = field(default_factory=list)


def codec_rows(
    model_path: str,
    questions_path: Path | None,
    *,
    num_questions: int,
    recompute_ratio: float,
    dtype: str,
    console: Console,
    codecs: Sequence[CodecName] = CODECS,
    num_passages: int = 5,
    passage_tokens: int = 220,
) -> Iterator[dict[str, Any]]:
    """Rows {model, dtype, codec, bytes_ratio, encode_gb_per_s, decode_gb_per_s, key_error, value_error, kl, kl_added,
    kl_added_stderr, num_questions}; `raw` must be the first of `codecs`.

    Bytes and GB are of the numbers in bf16; encoding and decoding are timed with torch's threads. Errors are root mean
    squares over those of the numbers. `kl` is a blend's to full prefill at `recompute_ratio` by the probe, `kl_added`
    what it is above that of the same blends of raw KV, means over questions;
    its standard error is that of the questions' differences, None of one question.
    """
    questions = load_questions(questions_path)
    model = LabModel(model_path, dtype=dtype, passage_tokens=passage_tokens)
    seen: dict[CodecName, _Seen] = {name: _Seen() for name in codecs}
    with Progress(console=console) as progress:
        task = progress.add_task("blends", total=num_questions * len(codecs))
        for question in questions[:num_questions]:
            lab = model.lab(
                question.question,
                question.passages[:num_passages],
                question.answers,
                unrelated=questions[-1].passages[0],
            )
            for name, own in seen.items():
                prompt = lab.lay_out(ENCODE, stored=_through(name, own))
                own.kl.append(lab.measure(prompt, SELECTOR, recompute_ratio).kl)
                progress.advance(task)
    for name, own in seen.items():
        added = [kl - raw for kl, raw in zip(own.kl, seen[codecs[0]].kl, strict=True)]
        yield {
            "model": Path(model_path).name,
            "dtype": dtype,
            "codec": name,
            "bytes_ratio": own.stored_bytes / own.num_bytes,
            "encode_gb_per_s": own.num_bytes / own.encode_s / 1e9,
            "decode_gb_per_s": own.num_bytes / own.decode_s / 1e9,
            "key_error": statistics.fmean(own.key_errors),
            "value_error": statistics.fmean(own.value_errors),
            "kl": statistics.fmean(own.kl),
            "kl_added": statistics.fmean(added),
            "kl_added_stderr": statistics.stdev(added) / len(added) ** 0.5 if len(added) > 1 else None,
            "num_questions": num_questions,
        }


def _through(name: CodecName, seen: _Seen) -> Callable[[Tensor], Tensor]:
    def through(kv: Tensor) -> Tensor:
        codec, wide = codec_of(codec_spec(name, kv.shape[-1])), kv.cpu()
        out = torch.empty(wide.shape, dtype=torch.bfloat16)
        numbers = wide.bfloat16()
        for layer, target in zip(numbers, out, strict=True):
            stored, encode_s = _timed(partial(codec.encode, layer))
            _, decode_s = _timed(partial(codec.decode, stored, target))
            seen.encode_s, seen.decode_s = seen.encode_s + encode_s, seen.decode_s + decode_s
            seen.num_bytes, seen.stored_bytes = seen.num_bytes + layer.nbytes, seen.stored_bytes + len(stored)
        error = (out.float() - numbers.float()).square().mean((0, 2, 3, 4)).sqrt()
        size = numbers.float().square().mean((0, 2, 3, 4)).sqrt()
        seen.key_errors.append(float(error[0] / size[0]))
        seen.value_errors.append(float(error[1] / size[1]))
        return out.to(kv)

    return through


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and its best time of a few, in seconds: others share the machine."""
    best = float("inf")
    for _ in range(TIMED_REPEATS):
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    return result, best
