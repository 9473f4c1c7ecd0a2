"""The connector in vLLM's scheduler process: which tokens come from passage KV, and under which block hashes."""

import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from vllm.logger import init_logger

from kvblend.blend import SELECTORS
from kvblend.core.control import EngineInfo
from kvblend.core.errors import InvalidRequestError
from kvblend.core.plan import KVBlendParams
from kvblend.core.report import BlendReport
from kvblend.core.settings import STORED_SHARE, Settings
from kvblend.store import TieredStore
from kvblend.store.tier_counts import OpCounts, TierOp
from kvblend.vllm_connector.engine.kv_groups import keeps_blocks
from kvblend.vllm_connector.fingerprint import model_fingerprint
from kvblend.vllm_connector.head_ranges import head_ranges
from kvblend.vllm_connector.log_ids import log_ids
from kvblend.vllm_connector.metadata import BlendTask, EncodeTask, StepMetadata, StepResults
from kvblend.vllm_connector.scheduler.admission import Admission
from kvblend.vllm_connector.scheduler.blend_trace import send_trace, trace_id
from kvblend.vllm_connector.scheduler.block_hashes import SaltedHashes
from kvblend.vllm_connector.scheduler.control import ControlServer, engine_address
from kvblend.vllm_connector.scheduler.lookups import Found, Lookups
from kvblend.vllm_connector.scheduler.orders import read_order
from kvblend.vllm_connector.scheduler.pending_encodes import PendingEncodes
from kvblend.vllm_connector.span_keys import place_spans
from kvblend.vllm_connector.timed_step import TimedStep

__all__ = ["SchedulerHalf"]

logger = init_logger("vllm.kvblend.scheduler")

LOOKUP_WAIT_S = 0.001
"""A lookup mostly takes less, and an engine step, after which vLLM asks again, mostly more."""


@dataclass
class _Tracked:
    """A request with an order, from its arrival to its end."""

    request: Any
    order: KVBlendParams
    hashes: SaltedHashes
    lookup: Future[Found] | None = None
    """Of a blend: what the store has."""
    was_asked: bool = False
    """Whether the lookup was waited for, as long as it is once."""
    report: BlendReport | None = None
    encoded: bool = False
    """Whether the step that completes its passage was scheduled: a preemption after it changes nothing."""
    arrived_ns: int = field(default_factory=time.time_ns)

    def cost(self, found: Found) -> int:
        """About how many tokens its blend puts through the model."""
        plan = self.order.blend
        assert plan is not None
        selected = SELECTORS[plan.selector].count(found.reused, recompute_ratio=found.recompute_ratio)
        return found.fresh + selected


class SchedulerHalf:
    """Decides for each request what is reused, and tells the worker half. A slow disk does not hold it up.

    Its caller contains exceptions, and prefills the request. A request whose blend vLLM has been promised is told so by
    the worker half, since it waits for that.
    """

    def __init__(self, vllm_config: Any, kv_cache_config: Any, settings: Settings) -> None:
        self._hash_block_size: int = kv_cache_config.hash_block_size or vllm_config.cache_config.block_size
        self._keeps_blocks = all(keeps_blocks(group.kv_cache_spec) for group in kv_cache_config.kv_cache_groups)
        heads = sorted(set(head_ranges(vllm_config)))
        fingerprint = model_fingerprint(vllm_config.model_config)
        self._lookups = Lookups(
            TieredStore.from_settings(settings), fingerprint, heads, deadline_s=settings.remote_deadline
        )
        self._admission = Admission(settings.repair_tokens_per_step)
        self._tracked: dict[str, _Tracked] = {}
        self._new_loads: list[BlendTask] = []
        self._refused: dict[str, str] = {}
        self._dropped: list[str] = []
        self._encodes = PendingEncodes(vllm_config.parallel_config.tensor_parallel_size)
        self._manager: Any = None
        self.control = ControlServer(
            engine_address(settings.control, vllm_config.parallel_config),
            EngineInfo(
                model=str(vllm_config.model_config.model),
                model_fingerprint=fingerprint,
                dtype=str(vllm_config.model_config.dtype).removeprefix("torch."),
                block_size=vllm_config.cache_config.block_size,
                max_model_len=vllm_config.model_config.max_model_len,
                head_ranges=heads,
                token_bytes=_token_bytes(vllm_config, settings),
                default_recompute_ratio=settings.recompute_ratio,
                max_raw_logprobs=_max_raw_logprobs(vllm_config.model_config),
            ),
        )

    def bind_kv_cache_manager(self, manager: Any) -> None:
        self._manager = manager

    def on_new_request(self, request: Any) -> None:
        """Read the order and choose the block hashes, before vLLM looks for a local prefix hit."""
        try:
            order = read_order(request)
        except InvalidRequestError as error:
            logger.warning("Request %s is prefilled: %s", request.request_id, error, extra=_log_ids(request))
            self._report_refusal(request, str(error))
            return
        if order is None:
            return
        tracked = _Tracked(request, order, SaltedHashes(request, self._salt(request, order)))
        self._tracked[request.request_id] = tracked
        if order.encode is not None:
            # a hit inside the passage would leave a sliding window's blocks unread
            tracked.hashes.apply(order.encode.start // self._hash_block_size)
            return
        try:
            self._begin_blend(tracked)
        except Exception as error:
            self._give_up(tracked, f"its blend could not be begun: {error}")

    def num_new_matched_tokens(self, request: Any, num_computed: int) -> int | None:
        """How many context tokens beyond a local hit of `num_computed` the worker half will fill.

        None where vLLM is to ask again later: what is stored is not known yet, or the worker half has enough to do.
        """
        tracked = self._tracked.get(request.request_id)
        if tracked is None or tracked.lookup is None or (tracked.report and tracked.report.outcome == "prefilled"):
            return 0
        try:
            return self._num_to_load(tracked, tracked.lookup, num_computed)
        except Exception as error:
            self._give_up(tracked, f"what is stored of it could not be found out: {error}")
            return 0

    def _num_to_load(self, tracked: _Tracked, lookup: Future[Found], num_computed: int) -> int | None:
        plan, start = tracked.order.blend, tracked.hashes.start
        assert plan is not None
        first_block = num_computed // self._hash_block_size
        # of a blend's own blocks, what is left of the last one is sooner prefilled than blended
        least = self._hash_block_size if start is not None and first_block > start else 1
        if plan.num_tokens - num_computed < least:
            return self._hit(tracked, num_computed)
        if not lookup.done() and not tracked.was_asked:
            tracked.was_asked = True
            wait([lookup], timeout=LOOKUP_WAIT_S)
        if not lookup.done():
            return None
        found = lookup.result()
        if found.end == 0:
            reason = "no passage of this prompt is in the store"
            self._finish_report(tracked, _blank_report(tracked, "prefilled", reason, missed_passages=found.missed))
            if start is None:
                return 0
            tracked.hashes.lift()
            return None  # its local hit is another one now
        if found.end - num_computed < least:
            return self._hit(tracked, num_computed)
        if not self._admission.admits(tracked.cost(found)):
            return None
        if start is None or first_block < start:
            tracked.hashes.apply(first_block)  # e.g. after a preemption, when the exact hit has been evicted since
        return found.end - num_computed

    def _hit(self, tracked: _Tracked, num_computed: int) -> int:
        """vLLM's own prefix cache has all that a blend would make."""
        plan = tracked.order.blend
        assert plan is not None
        exact_tokens = min(num_computed, plan.num_tokens)
        self._finish_report(tracked, _blank_report(tracked, "prefix_hit", exact_tokens=exact_tokens))
        return 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Have the worker half fill what vLLM has made room for; from here on vLLM waits for its word."""
        tracked = self._tracked.get(request.request_id)
        if tracked is None or tracked.lookup is None or num_external_tokens == 0:
            return
        try:
            self._begin_load(tracked, blocks, num_external_tokens)
        except Exception as error:
            logger.exception("Request %s is prefilled", request.request_id, extra=_log_ids(request))
            self._refused[request.request_id] = f"its blend could not be begun: {error}"

    def build_connector_meta(self, scheduler_output: Any) -> StepMetadata:
        metadata = StepMetadata(
            blends=self._new_loads,
            refused=self._refused,
            dropped=self._dropped,
            num_scheduled_tokens=scheduler_output.total_num_scheduled_tokens,
        )
        cached = scheduler_output.scheduled_cached_reqs
        computed = {new.req_id: new.num_computed_tokens for new in scheduler_output.scheduled_new_reqs}
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for request_id, start in computed.items():
            tracked = self._tracked.get(request_id)
            if tracked is None or tracked.order.encode is None or tracked.encoded:
                continue
            end = start + scheduler_output.num_scheduled_tokens[request_id]
            tokens, block_ids = list(tracked.request.prompt_token_ids), self._manager.get_block_ids(request_id)
            metadata.encodes.append(EncodeTask(request_id, tracked.order.encode, tokens, start, end, block_ids))
            if end >= tracked.order.encode.end:
                tracked.encoded = True
                self._encodes.begin(request_id, tracked.order.report_id)
        # only now: where this raises, the next step tells what this one could not
        self._new_loads, self._refused, self._dropped = [], {}, []
        return metadata

    def update_connector_output(self, results: StepResults | None, finished: Collection[str]) -> None:
        """Take up what the worker half has done, and whose loads have `finished`."""
        for request_id in finished:
            self._admission.end(request_id)
        if results is None:
            return
        for request_id, report in results.reports.items():
            tracked = self._tracked.get(request_id)
            if tracked is not None:
                self._finish_report(tracked, _whole_report(tracked, report), results.steps.get(request_id, ()))
        for request_id, reason in results.failed.items():
            tracked = self._tracked.get(request_id)
            if tracked is not None:
                # vLLM asks again for this request's tokens: from now on there are none to load
                self._finish_report(tracked, _blank_report(tracked, "prefilled", reason))
        for request_id, outcomes in results.encoded.items():
            ended = self._encodes.count(request_id, outcomes)
            if ended is not None:
                self.control.set_encoded(*ended)

    @property
    def has_pending_work(self) -> bool:
        """Whether the engine must go on stepping: commits and ends of blends come with a step, aborted ones' too."""
        return len(self._encodes) > 0 or len(self._admission) > 0

    @property
    def num_tracked(self) -> int:
        """Requests with an order, and blends that the worker half has."""
        return len(self._tracked) + len(self._admission)

    def request_finished(self, request: Any) -> dict[str, Any] | None:
        tracked = self._tracked.pop(request.request_id, None)
        if tracked is None:
            return None
        self._dropped.append(request.request_id)
        if tracked.report is None:
            return None
        return {"kvblend": tracked.report.model_dump(mode="json")}

    def take_counts(self) -> Mapping[tuple[str, TierOp], OpCounts]:
        """What was asked of the store's tiers since the last call."""
        return self._lookups.take_counts()

    def shutdown(self) -> None:
        self.control.close()
        self._lookups.close()

    def _begin_blend(self, tracked: _Tracked) -> None:
        """Ask the store, and salt as if it had the first passage: from the first block that holds a token of it, or
        from the end of a longer exact local hit that keeps its blocks."""
        plan = tracked.order.blend
        assert plan is not None
        tracked.lookup = self._lookups.begin(place_spans(plan, tracked.request.prompt_token_ids))
        first_passage = plan.spans[0].num_tokens if plan.spans[0].kind == "exact" else 0
        from_passage = first_passage // self._hash_block_size
        exact_hit = self._longest_hit(tracked, tracked.hashes.exact) // self._hash_block_size
        start = from_passage
        # behind a hit, layers with a sliding window have lost what the repaired tokens would look at
        if exact_hit > from_passage and self._keeps_blocks:
            blended_hit = self._longest_hit(tracked, tracked.hashes.salted_from(from_passage))
            if blended_hit <= self._longest_hit(tracked, tracked.hashes.salted_from(exact_hit)):
                start = exact_hit
        tracked.hashes.apply(start)

    def _begin_load(self, tracked: _Tracked, blocks: Any, num_external_tokens: int) -> None:
        plan, request = tracked.order.blend, tracked.request
        assert plan is not None and tracked.lookup is not None
        found = tracked.lookup.result()
        start, tokens = found.end - num_external_tokens, list(request.prompt_token_ids)
        block_ids, report_tokens = blocks.get_block_ids(), tracked.order.report_tokens is True
        trace = trace_id(request.trace_headers)
        task = BlendTask(request.request_id, plan, tokens, start, found.end, block_ids, report_tokens, trace)
        self._admission.begin(request.request_id, tracked.cost(found))
        self._new_loads.append(task)

    def _longest_hit(self, tracked: _Tracked, hashes: list[Any]) -> int:
        if self._manager is None or not self._manager.enable_caching:
            return 0
        length: int = self._manager.coordinator.find_longest_cache_hit(hashes, tracked.request.num_tokens - 1)[1]
        return length

    @staticmethod
    def _salt(request: Any, order: KVBlendParams) -> bytes:
        """What makes two blends of the same tokens the same: for an encode, nothing but the request itself."""
        digest = hashlib.sha256(b"kvblend 1 ")
        if order.blend is None:
            digest.update(request.request_id.encode())
        else:
            digest.update(order.blend.model_dump_json().encode())
            digest.update(str(request.prompt_token_ids[order.blend.num_tokens :]).encode())
        return digest.digest()

    def _finish_report(self, tracked: _Tracked, report: BlendReport, steps: Sequence[TimedStep] = ()) -> None:
        tracked.report = report
        if tracked.order.report_id is not None:
            self.control.set_report(tracked.order.report_id, report)
        if tracked.request.trace_headers:
            send_trace(tracked.request.trace_headers, report, steps, arrived_ns=tracked.arrived_ns)

    def _give_up(self, tracked: _Tracked, reason: str) -> None:
        """Let vLLM prefill a request that it has not been promised a blend of."""
        request = tracked.request
        logger.exception("Request %s is prefilled: %s", request.request_id, reason, extra=_log_ids(request))
        self._finish_report(tracked, _blank_report(tracked, "prefilled", reason))

    def _report_refusal(self, request: Any, reason: str) -> None:
        params = request.kv_transfer_params["kvblend"]
        report_id = params.get("report_id") if isinstance(params, dict) else None
        if isinstance(report_id, str):
            report = BlendReport(outcome="prefilled", reason=reason, prompt_tokens=request.num_prompt_tokens)
            self.control.set_report(report_id, report)
            self.control.set_encoded(report_id, reason)


def _log_ids(request: Any) -> dict[str, str]:
    return log_ids(request.request_id, trace_id(request.trace_headers))


def _blank_report(tracked: _Tracked, outcome: Any, reason: str | None = None, **counts: int) -> BlendReport:
    plan = tracked.order.blend
    assert plan is not None
    return BlendReport(
        outcome=outcome,
        reason=reason,
        prompt_tokens=tracked.request.num_prompt_tokens,
        context_tokens=plan.num_tokens,
        recompute_ratio=plan.recompute_ratio,
        selector=plan.selector,
        **counts,
    )


def _whole_report(tracked: _Tracked, report: BlendReport) -> BlendReport:
    """The worker half's report, with what vLLM prefills behind the last stored passage."""
    plan = tracked.order.blend
    assert plan is not None and tracked.lookup is not None
    behind = plan.num_tokens - report.context_tokens
    counts = {
        "context_tokens": plan.num_tokens,
        "recomputed_tokens": report.recomputed_tokens + behind,
        "missed_passages": report.missed_passages + tracked.lookup.result().missed_behind,
        "tokens": report.tokens and report.tokens.longer(behind),
    }
    return report.model_copy(update=counts)


def _max_raw_logprobs(model_config: Any) -> int:
    """How many log-probabilities a request may ask that are the model's own; 0 where vLLM gives processed ones."""
    if model_config.logprobs_mode != "raw_logprobs":
        return 0
    limit: int = model_config.max_logprobs
    return int(model_config.get_vocab_size()) if limit == -1 else limit


def _token_bytes(vllm_config: Any, settings: Settings) -> int:
    """By a codec, which stores as many bytes whatever the dtype is, or as they are."""
    model = vllm_config.model_config
    num_numbers = 2 * model.get_total_num_hidden_layers() * model.get_total_num_kv_heads() * model.get_head_size()
    num_bytes = int(model.dtype.itemsize) if settings.codec == "raw" else 2 * STORED_SHARE[settings.codec]
    return int(num_numbers * num_bytes)
