"""An engine's store and blends without a model: KV of zeros where it is told to keep some, reports of what it has."""

import random
from dataclasses import dataclass

import torch

from kvblend.core.control import EngineInfo
from kvblend.core.identity import token_hash
from kvblend.core.plan import EncodeOrder, KVBlendParams
from kvblend.core.report import BlendFlops, BlendReport, PassageReport, StepTimes, TokenFate, TokenReport
from kvblend.store import PassageKVKey, TieredStore

__all__ = ["ScriptedBlends"]


@dataclass
class ScriptedBlends:
    """Keeps KV in a store of its own on the service's tiers, and reports blends as the connector would.

    `slow_tiers`: those that take longer to load from than computing does.
    """

    store: TieredStore
    info: EngineInfo
    slow_tiers: frozenset[str] = frozenset()

    def encode(self, prompt: list[int], order: EncodeOrder) -> None:
        for start, end in order.spans:
            self.store.put(
                self._key(token_hash(prompt[:start]), prompt[start:end]),
                torch.zeros(1, 2, end - start, 1, 8),
                capture_position=start,
                owners=order.owners,
            )

    def blend(self, prompt: list[int], params: KVBlendParams) -> BlendReport:
        """Of what is stored, the probe's scores are random, and the highest are recomputed."""
        plan = params.blend
        assert plan is not None
        chance = random.Random(len(prompt))
        fates: list[TokenFate] = []
        scores: list[float | None] = []
        report = BlendReport(
            outcome="blended",
            prompt_tokens=len(prompt),
            context_tokens=plan.num_tokens,
            recompute_ratio=plan.recompute_ratio,
            selector=plan.selector,
            flops=BlendFlops(computed=20_000_000_000, full_prefill=80_000_000_000),
            steps_ms=StepTimes(load=12.5, probe=4.25, repair=31.0),
        )
        for span in plan.spans:
            start = len(fates)
            tokens = prompt[start : start + span.num_tokens]
            keys = [self._key(context, tokens) for context in span.encode_contexts]
            found = self.store.lookup_many(keys)
            if span.kind == "exact":
                fates += ["exact"] * span.num_tokens
                scores += [None] * span.num_tokens
                continue
            tier = next((found[key] for key in keys if key in found), None)
            passed_over = tier if tier in self.slow_tiers else None
            tier = None if passed_over else tier
            report.passages.append(
                PassageReport(start=start, num_tokens=span.num_tokens, tier=tier, passed_over=passed_over)
            )
            if tier is None:
                report.missed_passages += 1
                fates += ["fresh"] * span.num_tokens
                scores += [None] * span.num_tokens
                continue
            report.tiers[tier] = report.tiers.get(tier, 0) + span.num_tokens
            own = [chance.random() ** 6 * 0.02 for _ in tokens]
            least = sorted(own, reverse=True)[round(plan.recompute_ratio * len(own)) - 1]
            fates += ["recomputed" if score >= least else "reused" for score in own]
            scores += own
        report.exact_tokens, report.selected_tokens = fates.count("exact"), fates.count("recomputed")
        report.reused_tokens = fates.count("reused") + fates.count("recomputed")
        report.recomputed_tokens = fates.count("recomputed") + fates.count("fresh")
        if params.report_tokens:
            report.tokens = TokenReport.of(fates, scores)
        return report

    def _key(self, encode_context: str, tokens: list[int]) -> PassageKVKey:
        return PassageKVKey(self.info.model_fingerprint, encode_context, token_hash(tokens), *self.info.head_ranges[0])
