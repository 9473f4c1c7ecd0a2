"""One request's blend in the worker, from the step that takes it up to the one in which its context is whole."""

from collections.abc import Sequence
from concurrent.futures import Future
from enum import StrEnum

import torch
from torch import Tensor
from vllm.logger import init_logger

from kvblend.blend import SELECTORS, ModelFlops, Rows
from kvblend.core.errors import KVBlendError
from kvblend.core.report import BlendFlops, BlendReport, PassageReport, TokenFate, TokenReport
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.engine.local_hit import num_lost_tokens
from kvblend.vllm_connector.engine.pages import BlendContext, Pages
from kvblend.vllm_connector.metadata import BlendTask
from kvblend.vllm_connector.span_keys import place_spans
from kvblend.vllm_connector.timed_step import TimedSteps
from kvblend.vllm_connector.worker.stager import Brought, PassageSource, Stager

__all__ = ["Blend", "Readiness", "State"]

logger = init_logger("vllm.kvblend.blend")

NOT_THERE = 1 << 20
"""In place of the number of a choice."""
FATES: tuple[TokenFate, ...] = ("exact", "reused", "recomputed", "fresh")
EXACT, REUSED, RECOMPUTED, FRESH = range(len(FATES))
MAX_PROBE_TOKENS = 256
"""A longer question is probed by its last tokens: a bound on the probe's cost."""


class State(StrEnum):
    """Where a blend is in its life. Each of the first four leads to the next one, and to `failed`."""

    OPENED = "opened"
    """Taken up. It waits for scratch pages, where layers with sliding windows need them and other blends have them."""
    STAGING = "staging"
    """A thread opens its passages and brings their KV into its blocks."""
    PROBING = "probing"
    """They are there, on every rank. It waits for a step that has room for its question's forward."""
    REPAIRING = "repairing"
    """What to recompute is chosen; steps recompute it, as much as each has room for."""
    DONE = "done"
    FAILED = "failed"
    """vLLM prefills the request, or has dropped it."""


class Readiness:
    """How near a rank is to a blend's next state: the least of all ranks counts."""

    FAILED, WAITING, READY = range(3)


class Blend:
    """The spans of one plan, brought into the request's blocks and repaired there.

    It is polled, by the engine's thread, and never waited for; its staging has a thread. `todo` holds the context
    positions still to repair, ascending; empty until they are chosen. What a request drops, or what fails, keeps its
    blocks until its thread has ended: `is_over`. `staging`: that thread's work, once it has begun.

    Where layers have sliding windows, a local hit may have lost its first tokens: those of the preamble come from the
    store, for what is blended behind the hit to look at; a blend that would need others is not made.
    """

    context: BlendContext

    def __init__(self, task: BlendTask, caches: EngineCaches, pages: Pages) -> None:
        self.task, self.state = task, State.OPENED
        self.failure: str | None = None
        self._pages = pages
        self.num_tokens = task.num_tokens
        self.num_lost_tokens = num_lost_tokens(caches.layers, task.block_ids, task.start)
        self.spans = [
            span
            for span in place_spans(task.plan, task.token_ids)
            if span.start < self.num_tokens
            and (span.end > task.start or (span.start == 0 and self.num_lost_tokens > 0))
        ]
        self.token_ids = torch.tensor(task.token_ids)
        self.selector = SELECTORS[task.plan.selector]
        self.todo = torch.empty(0, dtype=torch.int64)
        self._scratch: list[int] | None = None
        self.timed_steps = TimedSteps()
        self._stager = Stager(task, caches, pages, self.spans, self.num_lost_tokens, self.timed_steps)
        self.staging: Future[list[Brought | None]] | None = None
        self.report = BlendReport(
            outcome="blended",
            prompt_tokens=len(task.token_ids),
            context_tokens=self.num_tokens,
            recompute_ratio=task.plan.recompute_ratio,
            selector=task.plan.selector,
        )

    @property
    def num_question_tokens(self) -> int:
        return min(MAX_PROBE_TOKENS, len(self.task.token_ids) - self.task.plan.num_tokens)

    @property
    def needs_probe(self) -> bool:
        return self.selector.needs_scores and 0.0 < self._recompute_ratio < 1.0

    @property
    def cost(self) -> int:
        """About how many tokens are still to go through the model."""
        if self.state is State.REPAIRING:
            return len(self.todo)
        selected = self.selector.count(int(self._candidates.sum()), recompute_ratio=self._recompute_ratio)
        return int(self._must_repair.sum()) + selected + (self.num_question_tokens if self.needs_probe else 0)

    def poll(self) -> list[int]:
        """How near this rank is to the next state, and what it has of each span. Raises nothing.

        A span's two numbers are its choice and minus its choice, so that the least of all ranks' tell whether all have
        the same one.
        """
        everything = [0] * (2 * len(self.spans))
        try:
            if self.state is State.OPENED:
                if self._scratch is None:
                    self._scratch = self._pages.reserve(self.num_tokens)
                return [Readiness.WAITING if self._scratch is None else Readiness.READY, *everything]
            assert self.staging is not None
            if not self.staging.done():
                return [Readiness.WAITING, *everything]
            choices = [NOT_THERE if own is None else own.choice for own in self.staging.result()]
            return [Readiness.READY, *(number for choice in choices for number in (choice, -choice))]
        except Exception as error:  # no memory, or a store that cannot be read: the ranks agree on it
            self.fail(f"the blend failed: {error}", error)
            return [Readiness.FAILED, *everything]

    def stage(self, source: PassageSource) -> None:
        """Opened to staging: take the blocks, and let a thread fill them."""
        assert self._scratch is not None
        self.context = self._pages.context(
            self.task.block_ids, self._scratch, num_tokens=self.num_tokens, hit=self.task.start
        )
        self.staging = source.threads.submit(self._stager.bring, source, self.context)
        self.state = State.STAGING

    def settle(self, agreed: Sequence[int]) -> None:
        """Stager to probing, with the spans of which every rank has the same variant; the others are repaired in full.

        `agreed`: the least of all ranks' numbers of `poll`.
        """
        assert self.staging is not None
        brought, report = self.staging.result(), self.report
        report.steps_ms.load = self._stager.load_ms
        choices = [low if low == -high else NOT_THERE for low, high in zip(agreed[::2], agreed[1::2], strict=True)]
        report.exact_tokens = self.task.start
        self.context.readable[: self.task.start] = True
        self._must_repair = torch.zeros(self.num_tokens, dtype=torch.bool)
        self._candidates = torch.zeros(self.num_tokens, dtype=torch.bool)
        self._num_whole = 0
        self._ratios = torch.zeros(self.num_tokens, dtype=torch.float64)
        self._fates = torch.full((self.num_tokens,), FRESH, dtype=torch.int8)
        self._fates[: self.task.start] = EXACT
        for place, (span, choice, own) in enumerate(zip(self.spans, choices, brought, strict=True)):
            tokens = slice(max(span.start, self.task.start), max(span.end, self.task.start))
            count = tokens.stop - tokens.start
            if choice == NOT_THERE:
                if self.num_lost_tokens > span.start:
                    raise KVBlendError("a local hit has lost tokens of the preamble, whose KV is not in the store")
                self._must_repair[tokens] = True
                if span.is_passage:
                    report.missed_passages += 1
                    report.passages.append(
                        PassageReport(
                            start=span.start,
                            num_tokens=span.end - span.start,
                            passed_over=self._stager.passed_over.get(place),
                        )
                    )
                continue
            assert own is not None
            variant = span.choices[choice]
            self.context.readable[tokens] = True
            if span.is_passage:
                report.tiers[own.tier] = report.tiers.get(own.tier, 0) + count
                report.passages.append(
                    PassageReport(
                        start=span.start,
                        num_tokens=span.end - span.start,
                        tier=own.tier,
                        encode_context=variant.encode_context,
                        exact=variant.exact,
                        recompute_ratio=variant.recompute_ratio,
                    )
                )
            if variant.exact:
                self._fates[tokens] = EXACT
                report.exact_tokens += count
            elif variant.recompute_ratio == 1.0 and self.selector.needs_scores:
                self._must_repair[tokens] = True  # all of it, whatever its scores beside others' are
                self._fates[tokens] = RECOMPUTED
                report.reused_tokens += count
                self._num_whole += count
            else:
                self._candidates[tokens] = True
                self._fates[tokens] = REUSED
                self._ratios[tokens] = variant.recompute_ratio
                report.reused_tokens += count
        self.state = State.PROBING

    def question_rows(self) -> Rows:
        start = len(self.task.token_ids) - self.num_question_tokens
        return Rows(self.context, self.token_ids[start:], torch.arange(start, len(self.task.token_ids)))

    def select(self, scores: Tensor | None, flops: ModelFlops) -> None:
        """Probing to repairing: choose what to repair; `scores` are on CPU, `flops` of the model."""
        candidates, ratio = self._candidates.nonzero()[:, 0], self._recompute_ratio
        if self.selector.needs_scores and scores is None:
            selected = candidates if ratio == 1.0 else candidates[:0]
        else:
            if scores is not None:
                # the better a passage fits, the less its tokens err: they count for less in proportion
                scores = scores * self._ratios
            selected = self.selector.select(candidates, recompute_ratio=ratio, scores=scores)
        chosen = self._must_repair.clone()
        chosen[selected] = True
        self.todo = chosen.nonzero()[:, 0]
        self.report.selected_tokens = self._num_whole + len(selected)
        self.report.recomputed_tokens = len(self.todo)
        self.report.flops = self._flops(flops, is_probed=scores is not None)
        if self.task.report_tokens:
            self._fates[selected] = RECOMPUTED
            self.report.tokens = self._token_report(scores)
        self.state = State.REPAIRING

    def _flops(self, flops: ModelFlops, *, is_probed: bool) -> BlendFlops:
        """Of what is chosen by now, and of the prompt."""
        tokens = torch.arange(len(self.task.token_ids))
        computed = flops.tokens(self.todo) + flops.tokens(tokens[self.num_tokens :]) + flops.head
        if is_probed:
            computed += flops.tokens(tokens[len(tokens) - self.num_question_tokens :])
        return BlendFlops(computed=computed, full_prefill=flops.full_prefill(tokens))

    def _token_report(self, scores: Tensor | None) -> TokenReport:
        """`scores`: of all context tokens, weighed; only candidates' are told."""
        told: list[float | None] = []
        if scores is not None:
            pairs = zip(scores.tolist(), self._candidates.tolist(), strict=True)
            told = [score if is_candidate else None for score, is_candidate in pairs]
        return TokenReport.of((FATES[fate] for fate in self._fates.tolist()), told)

    @property
    def _recompute_ratio(self) -> float:
        """The mean over the reused tokens."""
        ratios = self._ratios[self._candidates]
        return float(ratios[0] if (ratios == ratios[:1]).all() else ratios.mean()) if len(ratios) else 0.0

    def rows(self, room: int) -> Rows:
        """The next tokens to repair, at most `room`; `repaired` takes them off."""
        positions = self.todo[:room]
        return Rows(self.context, self.token_ids[positions], positions)

    def repaired(self, count: int) -> None:
        self.todo = self.todo[count:]

    def finish(self) -> None:
        """Repairing to done: see that the whole context is in the request's blocks."""
        assert self._scratch is not None
        self._pages.copy_back(self.context, self.task.block_ids, self._scratch, hit=self.task.start)
        self.state = State.DONE

    def fail(self, reason: str, error: Exception | None = None) -> None:
        """Any state to failed; what it was first stays. Its staging ends by itself."""
        if self.state is not State.FAILED:
            self.state, self.failure = State.FAILED, reason
            logger.error(
                "Request %s is prefilled: %s", self.task.request_id, reason, exc_info=error, extra=self.task.log_ids
            )

    def drop(self) -> None:
        """The request is gone."""
        self.state = State.FAILED

    @property
    def is_over(self) -> bool:
        """Whether it has ended and nothing of it touches the request's blocks; it has given its scratch pages back."""
        if self.state not in (State.DONE, State.FAILED):
            return False
        if self.staging is not None and not self.staging.cancel() and not self.staging.done():
            return False
        if self._scratch is not None:
            self._pages.release(self._scratch)
            self._scratch = None
        return True
