"""Which recompute ratios calibration measures."""

from collections.abc import Sequence

from kvblend.core.calibration import CurvePoint, smallest_ratio

__all__ = ["FIRST_RATIOS", "next_ratio"]

FIRST_RATIOS = (0.0, 0.05, 0.15, 0.30, 0.55)
STEP = 0.05


def next_ratio(curve: Sequence[CurvePoint], target_kl: float, target_agreement: float) -> float | None:
    """The ratio to measure next: halfway between the smallest that meets the targets and the one below it.

    `curve` ascends. None where these are neighbours on a grid of 0.05, where the smallest of all meets the target, or
    where none does.
    """
    smallest = smallest_ratio(curve, target_kl, target_agreement)
    below = [point.recompute_ratio for point in curve if smallest is not None and point.recompute_ratio < smallest]
    if smallest is None or not below:
        return None
    low, high = (round(ratio / STEP) for ratio in (below[-1], smallest))
    return round((low + high) // 2 * STEP, 2) if high - low > 1 else None
