"""A request with an order, and what is reported of it."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from kvblend.blend import SELECTORS
from kvblend.core.plan import ContextPlan, KVBlendParams
from kvblend.core.report import BlendReport
from kvblend.vllm_connector.scheduler.block_hashes import SaltedHashes
from kvblend.vllm_connector.scheduler.lookups import Found

__all__ = ["Tracked"]


@dataclass
class Tracked:
    """From its arrival to its end."""

    request: Any
    order: KVBlendParams
    hashes: SaltedHashes
    lookup: Future[Found] | None = None
    """Of a blend: what the store has."""
    was_asked: bool = False
    """Whether the lookup was waited for, as long as it is once."""
    was_answered: bool = False
    """Whether vLLM has been told how much is to be loaded, and connectors beside this one asked after it."""
    report: BlendReport | None = None
    encoded: bool = False
    """Whether the step that completes its passage was scheduled: a preemption after it changes nothing."""
    arrived_ns: int = field(default_factory=time.time_ns)

    @property
    def plan(self) -> ContextPlan:
        assert self.order.blend is not None
        return self.order.blend

    def cost(self, found: Found) -> int:
        """About how many tokens its blend puts through the model."""
        selected = SELECTORS[self.plan.selector].count(found.reused, recompute_ratio=found.recompute_ratio)
        return found.fresh + selected

    def blank_report(self, outcome: Any, reason: str | None = None, **counts: int) -> BlendReport:
        """The report of a request of which nothing was blended."""
        return BlendReport(
            outcome=outcome,
            reason=reason,
            prompt_tokens=self.request.num_prompt_tokens,
            context_tokens=self.plan.num_tokens,
            recompute_ratio=self.plan.recompute_ratio,
            selector=self.plan.selector,
            **counts,
        )

    def whole_report(self, report: BlendReport) -> BlendReport:
        """The worker half's report, with what vLLM prefills behind the last stored passage."""
        assert self.lookup is not None
        behind = self.plan.num_tokens - report.context_tokens
        counts = {
            "context_tokens": self.plan.num_tokens,
            "recomputed_tokens": report.recomputed_tokens + behind,
            "missed_passages": report.missed_passages + self.lookup.result().missed_behind,
            "tokens": report.tokens and report.tokens.longer(behind),
        }
        return report.model_copy(update=counts)
