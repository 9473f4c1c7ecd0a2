"""Calibrations for tests."""

from collections.abc import Mapping
from typing import Any

from kvblend.core.calibration import Calibration, CurvePoint, smallest_ratio

__all__ = ["FINGERPRINT", "a_calibration", "a_curve"]

FINGERPRINT = "ab" * 32


def a_curve(upper_bounds: Mapping[float, float]) -> tuple[CurvePoint, ...]:
    """A curve with these upper bounds, by ratio."""
    return tuple(
        CurvePoint(recompute_ratio=ratio, kl=bound / 2, kl_upper95=bound, agreement=0.9)
        for ratio, bound in sorted(upper_bounds.items())
    )


def a_calibration(curve: tuple[CurvePoint, ...], *, target_kl: float, **fields: Any) -> Calibration:
    """The calibration that this curve gives."""
    return Calibration(
        **{
            "model": "model",
            "model_fingerprint": FINGERPRINT,
            "dtype": "float32",
            "selector": "probe",
            "target_kl": target_kl,
            "recompute_ratio": smallest_ratio(curve, target_kl),
            "num_questions": 8,
            "num_passages": 5,
            "passage_tokens": 160.0,
            "curve": curve,
            "created_at": 0.0,
            **fields,
        }
    )
