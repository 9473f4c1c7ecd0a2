"""Calibrations for tests."""

from collections.abc import Mapping
from typing import Any

from kvblend.core.calibration import ENCODE_KINDS, Calibration, CurvePoint, EncodeKind, KindCalibration, smallest_ratio

__all__ = ["FINGERPRINT", "a_calibration", "a_curve"]

FINGERPRINT = "ab" * 32


def a_curve(upper_bounds: Mapping[float, float]) -> tuple[CurvePoint, ...]:
    """A curve with these upper bounds, by ratio."""
    return tuple(
        CurvePoint(
            recompute_ratio=ratio, kl=bound / 2, kl_upper95=bound, agreement=0.95, first_agreement=1.0, same_answer=0.8
        )
        for ratio, bound in sorted(upper_bounds.items())
    )


def a_calibration(
    curve: tuple[CurvePoint, ...],
    *,
    target_kl: float,
    curves: Mapping[EncodeKind, tuple[CurvePoint, ...]] | None = None,
    **fields: Any,
) -> Calibration:
    """The calibration that this curve gives, of every kind that `curves` has no other of."""
    kinds = {}
    for kind in ENCODE_KINDS:
        own = (curves or {}).get(kind, curve)
        kinds[kind] = KindCalibration(recompute_ratio=smallest_ratio(own, target_kl, 0.9), curve=own)
    return Calibration(
        **{
            "model": "model",
            "model_fingerprint": FINGERPRINT,
            "dtype": "float32",
            "selector": "probe",
            "target_kl": target_kl,
            "target_agreement": 0.9,
            "kinds": kinds,
            "num_questions": 8,
            "num_passages": 5,
            "passage_tokens": 160.0,
            "created_at": 0.0,
            **fields,
        }
    )
