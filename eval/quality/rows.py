"""The rows of `kvblend bench quality`: means over questions, with their intervals."""

import statistics
from collections.abc import Iterator
from typing import Any

from kvblend.eval.quality.bootstrap import Resamples
from kvblend.eval.quality.first_sentence import first_sentence
from kvblend.eval.quality.question_lab import Measurement
from kvblend.eval.quality.run import FULL_PREFILL
from kvblend.eval.quality.state import MethodKey

__all__ = ["BASELINE", "quality_rows"]

BASELINE = ("alone", "cacheblend_v")
"""What `kl_fraction` is a fraction of, at the same recompute ratio, and `kl_fraction_015` at 0.15."""
FIXED_RATIO = 0.15


def quality_rows(measured: dict[MethodKey, list[Measurement]], resamples: Resamples) -> Iterator[dict[str, Any]]:
    """A row a method, full prefill's first; every method is measured on the same questions.

    Rows {selector, encode, recompute_ratio, flops_ratio, num_questions, agreement} with {kl, f1, f1_gain,
    same_sentence, kl_fraction, kl_fraction_015}, each with `_ci95`. `f1_gain`: over full prefill's, paired by question.
    `same_sentence`: share of greedy answers whose first sentence has full prefill's words. `kl_fraction` is the KL as a
    fraction of CacheBlend's (values of layer 1, exact mask, passages alone) at the same ratio, `kl_fraction_015` of its
    KL at 0.15.
    """
    full = measured[FULL_PREFILL]
    sentences = [first_sentence(one.answer) for one in full]
    for key, measurements in measured.items():
        values = {
            "kl": [one.kl for one in measurements],
            "f1": [one.f1 for one in measurements],
            "f1_gain": [one.f1 - theirs.f1 for one, theirs in zip(measurements, full, strict=True)],
            "same_sentence": [
                float(first_sentence(one.answer) == theirs) for one, theirs in zip(measurements, sentences, strict=True)
            ],
        }
        row: dict[str, Any] = {
            "selector": key.selector,
            "encode": key.encode or None,
            "recompute_ratio": key.recompute_ratio,
            "flops_ratio": statistics.fmean(one.flops_ratio for one in measurements),
            "num_questions": len(measurements),
            "agreement": statistics.fmean(one.agreement for one in measurements),
        }
        for name, own in values.items():
            row |= {name: statistics.fmean(own), f"{name}_ci95": resamples.mean_ci95(own)}
        for name, ratio in (("kl_fraction", key.recompute_ratio), ("kl_fraction_015", FIXED_RATIO)):
            baseline = measured.get(MethodKey(*BASELINE, ratio))
            row |= {name: None, f"{name}_ci95": None}
            if baseline is not None and key.encode:
                theirs = [one.kl for one in baseline]
                row[name] = statistics.fmean(values["kl"]) / statistics.fmean(theirs)
                row[f"{name}_ci95"] = resamples.ratio_ci95(values["kl"], theirs)
        yield row
