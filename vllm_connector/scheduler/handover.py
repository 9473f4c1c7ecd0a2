"""Requests that two engines share: one prefills the prompt, another takes its KV over and answers."""

from typing import Any

from pydantic import ValidationError
from vllm.logger import init_logger

from kvblend.core.plan import REPORT
from kvblend.core.report import BlendReport

__all__ = ["handed_report", "is_handed_on", "is_taken_over", "lost_report"]

logger = init_logger("vllm.kvblend.scheduler")


def is_handed_on(request: Any) -> bool:
    """Whether another engine takes over the KV that this one makes."""
    return bool(_params(request).get("do_remote_decode"))


def is_taken_over(request: Any) -> bool:
    """Whether another engine has made the prompt's KV. As the request arrives: a connector that has begun to fetch it
    says so no longer."""
    return bool(_params(request).get("do_remote_prefill"))


def handed_report(request: Any) -> BlendReport | None:
    """The report of the engine that made a prompt's KV; None where its answer had none."""
    report = _params(request).get(REPORT)
    if report is None:
        return None
    try:
        return BlendReport.model_validate(report)
    except ValidationError as error:
        logger.warning("Request %s came with a %s that is none: %s", request.request_id, REPORT, error)
        return None


def lost_report(report: BlendReport) -> BlendReport:
    """The report of a prompt whose KV was made elsewhere and did not come over."""
    return BlendReport(
        outcome="prefilled",
        reason="the KV of its prompt did not come over from the engine that made it",
        prompt_tokens=report.prompt_tokens,
        context_tokens=report.context_tokens,
        recomputed_tokens=report.context_tokens,
    )


def _params(request: Any) -> dict[str, Any]:
    params = request.kv_transfer_params
    return params if isinstance(params, dict) else {}
