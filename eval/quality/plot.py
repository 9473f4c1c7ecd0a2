"""Draw quality against work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvblend.core.errors import InvalidRequestError

__all__ = ["quality_plot"]


def quality_plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG: KL to full prefill against FLOPs, a colour a selector, a line style an encode context.

    Raises InvalidRequestError where matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidRequestError("a plot needs matplotlib: install kvblend[plot]") from error
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    methods = dict.fromkeys((row["selector"], row["encode"]) for row in rows if row["encode"] is not None)
    selectors, encodes = (list(dict.fromkeys(names)) for names in zip(*methods, strict=True))
    for selector, encode in methods:
        own = sorted(
            (row for row in rows if (row["selector"], row["encode"]) == (selector, encode)),
            key=lambda row: float(row["flops_ratio"]),
        )
        kl = [row["kl"] for row in own]
        errors = [
            [max(0.0, row["kl"] - row["kl_ci95"][0]) for row in own],
            [max(0.0, row["kl_ci95"][1] - row["kl"]) for row in own],
        ]
        axes.errorbar(
            [row["flops_ratio"] for row in own],
            kl,
            yerr=errors,
            label=f"{selector}, {encode}",
            color=colormaps["tab20"](selectors.index(selector) % 20),
            linestyle=("-", "--", ":", "-.")[encodes.index(encode) % 4],
            marker="o",
            markersize=3,
            linewidth=1,
            elinewidth=0.5,
        )
    axes.set(xscale="log", yscale="log", xlabel="FLOPs / full prefill's", ylabel="KL to full prefill (nats a token)")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize="x-small", ncols=2)
    figure.savefig(path, dpi=120, format="png")
