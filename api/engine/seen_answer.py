"""What is seen of one answer as it goes by, and the report that is made of it."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kvblend.core.plan import REPORT
from kvblend.core.report import BlendReport

__all__ = ["SeenAnswer"]

logger = logging.getLogger(__name__)


class SeenAnswer:
    """An answer of vLLM, streamed or whole. `reason`: why its context is prefilled, where it is known beforehand."""

    def __init__(self, *, num_context: int, reason: str | None, calibrated: bool) -> None:
        self._num_context = num_context
        self._reason = reason
        self._calibrated = calibrated
        self._sent_at = time.perf_counter()
        self._ttft_ms: float | None = None
        self._usage: Mapping[str, Any] = {}
        self.came_with: BlendReport | None = None
        """The connector's report, which a whole answer brings along from whichever engine gave it."""

    def see(self, chunk: Mapping[str, Any]) -> bool:
        """Note a chunk; True for the one that holds the first token."""
        self._usage = chunk.get("usage") or self._usage
        if self._ttft_ms is not None or not chunk.get("choices"):
            return False
        self._ttft_ms = (time.perf_counter() - self._sent_at) * 1000
        return True

    def see_whole(self, answer: Mapping[str, Any]) -> None:
        """Note an answer that is not streamed. Its time to first token is vLLM's own measure, where vLLM gives it."""
        self._usage = answer.get("usage") or {}
        self.came_with = _report_in(answer)
        metrics = answer.get("metrics") or {}
        queued_ms, computed_ms = metrics.get("queue_time_ms"), metrics.get("time_to_first_token_ms")
        self._ttft_ms = None if queued_ms is None or computed_ms is None else queued_ms + computed_ms

    def report(self, blended: BlendReport | None) -> BlendReport:
        """The connector's report where there is one, else one of a plain prefill, with the time to first token."""
        if blended:
            return blended.model_copy(update={"ttft_ms": self._ttft_ms, "calibrated": self._calibrated})
        details = self._usage.get("prompt_tokens_details") or {}
        num_cached = min(details.get("cached_tokens") or 0, self._num_context)
        return BlendReport(
            outcome="prefilled",
            reason=self._reason or "the control channel gave no report",
            prompt_tokens=self._usage.get("prompt_tokens", 0),
            context_tokens=self._num_context,
            exact_tokens=num_cached,
            recomputed_tokens=self._num_context - num_cached,
            calibrated=self._calibrated,
            ttft_ms=self._ttft_ms,
        )


def _report_in(answer: Mapping[str, Any]) -> BlendReport | None:
    given = (answer.get("kv_transfer_params") or {}).get(REPORT)
    if given is None:
        return None
    try:
        return BlendReport.model_validate(given)
    except ValidationError as error:  # of an engine with another version
        logger.warning("an answer came with what is no report: %s", error)
        return None
