"""A blend report in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvblend.core.report import BlendReport

__all__ = ["report_line"]


def report_line(report: BlendReport) -> str:
    """How a context was made, in one line."""
    counts = f"{report.reused_tokens} reused, {report.selected_tokens} selected, {report.recomputed_tokens} recomputed"
    ttft = "" if report.ttft_ms is None else f", first token after {report.ttft_ms:.0f} ms"
    reason = f" ({report.reason})" if report.reason else ""
    held = ", held to its calibration" if report.calibrated else ""
    return f"{report.outcome}{reason}: of {report.context_tokens} context tokens {counts}{ttft}{held}"
