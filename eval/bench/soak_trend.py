"""Whether what was sampled over time is flat, and its picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvblend.core.errors import InvalidRequestError

__all__ = ["LEAST_BOUNDS", "soak_plot", "trend"]

FLAT_SHARE = 0.05
LEAST_BOUNDS: Mapping[str, float] = {
    "service_mib": 64.0,
    "engine_mib": 64.0,
    "service_files": 8.0,
    "engine_files": 8.0,
    "service_sockets": 8.0,
    "engine_sockets": 8.0,
    "kv_blocks_share": 0.05,
    "cpu_tier_mib": 32.0,
    "disk_tier_mib": 32.0,
}
"""By series: a rise that is none, however small the mean."""


def trend(name: str, seconds: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    """A series' row: {series, first, mean, max, rise, bound, flat}, of its second half but for `first`.

    `rise`: of the line of least squares, from the half's beginning to its end. It is flat where that is at most
    `bound`: a twentieth of the mean, or the series' least bound where that is more.
    """
    half = len(values) // 2
    at, own = np.asarray(seconds[half:], dtype=float), np.asarray(values[half:], dtype=float)
    slope = float(np.polyfit(at - at[0], own, 1)[0]) if len(own) > 1 else 0.0
    rise = slope * float(at[-1] - at[0])
    mean = float(own.mean())
    bound = max(FLAT_SHARE * mean, LEAST_BOUNDS.get(name, 0.0))
    return {
        "series": name,
        "first": float(values[0]),
        "mean": mean,
        "max": float(own.max()),
        "rise": rise,
        "bound": bound,
        "flat": rise <= bound,
    }


def soak_plot(seconds: Sequence[float], series: Mapping[str, Sequence[float | None]], path: Path) -> None:
    """Write a PNG, a panel a series. Raises InvalidRequestError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidRequestError("a plot needs matplotlib: install kvblend[plot]") from error
    figure = Figure(figsize=(9, 1.6 * len(series)), layout="constrained")
    panels = figure.subplots(len(series), sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(panels, series.items(), strict=True):
        axes.plot([at / 60 for at in seconds], [np.nan if value is None else value for value in values], linewidth=1)
        axes.set_ylabel(name.replace("_", " "), fontsize="x-small")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("minutes")
    figure.savefig(path, dpi=120, format="png")
