"""The connector in vLLM's scheduler process: which tokens come from passage KV, and under which block hashes."""

from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import Future, wait
from typing import Any

from vllm.logger import init_logger

from kvblend.core.errors import InvalidRequestError
from kvblend.core.plan import REPORT, KVBlendParams
from kvblend.core.plan_salt import is_salt_of, plan_digest
from kvblend.core.report import BlendReport
from kvblend.core.settings import Settings
from kvblend.store import TieredStore
from kvblend.vllm_connector.connector_stats import ConnectorStats
from kvblend.vllm_connector.engine.kv_groups import keeps_blocks
from kvblend.vllm_connector.fingerprint import model_fingerprint
from kvblend.vllm_connector.head_ranges import head_ranges
from kvblend.vllm_connector.log_ids import log_ids
from kvblend.vllm_connector.metadata import BlendTask, EncodeTask, StepMetadata, StepResults
from kvblend.vllm_connector.scheduler.admission import Admission
from kvblend.vllm_connector.scheduler.blend_trace import send_trace, trace_id
from kvblend.vllm_connector.scheduler.block_hashes import SaltedHashes
from kvblend.vllm_connector.scheduler.control import ControlServer, engine_address
from kvblend.vllm_connector.scheduler.engine_info import engine_info
from kvblend.vllm_connector.scheduler.handover import handed_report, is_handed_on, is_taken_over, lost_report
from kvblend.vllm_connector.scheduler.holdings import Holdings
from kvblend.vllm_connector.scheduler.lookups import Found, Lookups
from kvblend.vllm_connector.scheduler.orders import order_report_id, read_order
from kvblend.vllm_connector.scheduler.pending_encodes import PendingEncodes
from kvblend.vllm_connector.scheduler.tracked import Tracked
from kvblend.vllm_connector.siblings import NO_SIBLINGS, Siblings
from kvblend.vllm_connector.span_keys import place_spans
from kvblend.vllm_connector.timed_step import TimedStep

__all__ = ["SchedulerHalf"]

logger = init_logger("vllm.kvblend.scheduler")

LOOKUP_WAIT_S = 0.001
"""A lookup mostly takes less, and an engine step, after which vLLM asks again, mostly more."""


class SchedulerHalf:
    """Decides for each request what is reused, and tells the worker half. A slow disk does not hold it up.

    Its caller contains exceptions, and prefills the request. A request whose blend vLLM has been promised is told so by
    the worker half, since it waits for that.
    """

    def __init__(
        self, vllm_config: Any, kv_cache_config: Any, settings: Settings, siblings: Siblings = NO_SIBLINGS
    ) -> None:
        self._siblings = siblings
        self._hash_block_size: int = kv_cache_config.hash_block_size or vllm_config.cache_config.block_size
        self._keeps_blocks = all(keeps_blocks(group.kv_cache_spec) for group in kv_cache_config.kv_cache_groups)
        heads = sorted(set(head_ranges(vllm_config)))
        fingerprint = model_fingerprint(vllm_config.model_config)
        self._lookups = Lookups(
            TieredStore.from_settings(settings), fingerprint, heads, deadline_s=settings.remote_deadline
        )
        self._holdings = Holdings(self._lookups)
        self._admission = Admission(settings.repair_tokens_per_step)
        self._tracked: dict[str, Tracked] = {}
        self._handed: dict[str, BlendReport] = {}
        self._new_loads: list[BlendTask] = []
        self._refused: dict[str, str] = {}
        self._dropped: list[str] = []
        self._encodes = PendingEncodes(vllm_config.parallel_config.tensor_parallel_size)
        self._passages: Counter[str] = Counter()
        self._manager: Any = None
        self.control = ControlServer(
            engine_address(settings.control, vllm_config.parallel_config),
            engine_info(
                vllm_config,
                settings,
                model_fingerprint=fingerprint,
                heads=heads,
                siblings=siblings,
                places=self._lookups.store.places,
            ),
            look=self._holdings.look,
        )

    def bind_kv_cache_manager(self, manager: Any) -> None:
        self._manager = manager

    def on_new_request(self, request: Any) -> None:
        """Read the order and choose the block hashes, before vLLM looks for a local prefix hit."""
        self._holdings.begin(request.request_id)
        try:
            order = read_order(request)
            if is_taken_over(request):
                self._take_over(request, order)
                return
            if order is None:
                return
            hashes = _hashes(request, order)
            if order.blend is not None:
                self._check_salt(request, hashes)
        except InvalidRequestError as error:
            logger.warning("Request %s is prefilled: %s", request.request_id, error, extra=_log_ids(request))
            self._report_refusal(request, str(error))
            return
        tracked = Tracked(request, order, hashes)
        self._tracked[request.request_id] = tracked
        if order.encode is not None:
            # a hit inside the passage would leave a sliding window's blocks unread
            tracked.hashes.apply(order.encode.start // self._hash_block_size)
            # nor is what nobody will find under these hashes offloaded
            params = {"max_offload_tokens": order.encode.start, **(request.kv_transfer_params or {})}
            request.kv_transfer_params = params
            return
        try:
            self._begin_blend(tracked)
        except Exception as error:
            self._give_up(tracked, f"its blend could not be begun: {error}")

    def _check_salt(self, request: Any, hashes: SaltedHashes) -> None:
        """Raise InvalidRequestError for a blend that goes where a private salt of its hashes does not reach."""
        if not (is_handed_on(request) or self._siblings.needs_plan_salt) or hashes.are_apart:
            return
        raise InvalidRequestError(
            "the KV of this request goes to other engines or connectors, which would take it for exact KV: send the "
            "plan's cache_salt with it (kvblend.core.plan_salt)"
        )

    def _take_over(self, request: Any, order: KVBlendParams | None) -> None:
        """Of a prompt whose KV another engine has made, keep what it blended apart, and pass on its report."""
        if order is not None and order.blend is not None:
            _hashes(request, order).apply(0)
        report = handed_report(request)
        if report is None:
            return
        self._handed[request.request_id] = report
        if order is not None and order.report_id is not None:
            self.control.set_report(order.report_id, report)

    def num_new_matched_tokens(self, request: Any, num_computed: int) -> int | None:
        """How many context tokens beyond a local hit of `num_computed` the worker half will fill.

        None where vLLM is to ask again later: what is stored is not known yet, or the worker half has enough to do.
        """
        tracked = self._tracked.get(request.request_id)
        if tracked is None or tracked.lookup is None or (tracked.report and tracked.report.outcome == "prefilled"):
            return 0
        try:
            num_tokens = self._num_to_load(tracked, tracked.lookup, num_computed)
        except Exception as error:
            self._give_up(tracked, f"what is stored of it could not be found out: {error}")
            return 0
        tracked.was_answered = tracked.was_answered or num_tokens is not None
        return num_tokens

    def _num_to_load(self, tracked: Tracked, lookup: Future[Found], num_computed: int) -> int | None:
        plan, start = tracked.plan, tracked.hashes.start
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
            self._finish_report(tracked, tracked.blank_report("prefilled", reason, missed_passages=found.missed))
            return None if tracked.hashes.lift() else 0  # its local hit may be another one now
        if found.end - num_computed < least:
            return self._hit(tracked, num_computed)
        if not self._admission.admits(tracked.cost(found)):
            return None
        if start is None or first_block < start:  # e.g. after a preemption, when the exact hit has been evicted since
            if tracked.was_answered and self._siblings.follows_hashes:
                reason = "it was preempted, and what it was blended behind has left vLLM's prefix cache"
                self._finish_report(tracked, tracked.blank_report("prefilled", reason))
                return 0
            tracked.hashes.apply(first_block)
        return found.end - num_computed

    def _hit(self, tracked: Tracked, num_computed: int) -> int:
        """vLLM's own prefix cache has all that a blend would make."""
        exact_tokens = min(num_computed, tracked.plan.num_tokens)
        self._finish_report(tracked, tracked.blank_report("prefix_hit", exact_tokens=exact_tokens))
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

    def update_connector_output(
        self, results: StepResults | None, finished: Collection[str], failed: Collection[str]
    ) -> None:
        """Take up what the worker half has done, and whose loads have `finished` or `failed`, other connectors' too."""
        for request_id in finished:
            self._admission.end(request_id)
        for request_id in self._handed.keys() & failed:
            self._handed[request_id] = lost_report(self._handed[request_id])
        if results is None:
            return
        for request_id, report in results.reports.items():
            tracked = self._tracked.get(request_id)
            if tracked is not None:
                self._finish_report(tracked, tracked.whole_report(report), results.steps.get(request_id, ()))
        for request_id, reason in results.failed.items():
            tracked = self._tracked.get(request_id)
            if tracked is not None:
                # vLLM asks again for this request's tokens: from now on there are none to load
                self._finish_report(tracked, tracked.blank_report("prefilled", reason))
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
        self._holdings.end(request.request_id)
        tracked, report = self._tracked.pop(request.request_id, None), self._handed.pop(request.request_id, None)
        if tracked is not None:
            self._dropped.append(request.request_id)
            report = tracked.report
        return None if report is None else {REPORT: report.model_dump(mode="json")}

    def take_stats(self) -> ConnectorStats | None:
        """What was counted since the last call."""
        passages, self._passages = +self._passages, Counter()
        return ConnectorStats.of(self._lookups.store, "scheduler", passages)

    def shutdown(self) -> None:
        self.control.close()
        self._lookups.close()

    def _begin_blend(self, tracked: Tracked) -> None:
        """Ask the store, and salt as if it had the first passage: from the first block that holds a token of it; from
        the end of a longer exact local hit that keeps its blocks; or from that of a shorter one, where a blend that
        began there has left more."""
        plan = tracked.plan
        tracked.lookup = self._lookups.begin(place_spans(plan, tracked.request.prompt_token_ids))
        if tracked.hashes.are_apart:
            return
        first_passage = plan.spans[0].num_tokens if plan.spans[0].kind == "exact" else 0
        from_passage = first_passage // self._hash_block_size
        exact_hit = self._longest_hit(tracked, tracked.hashes.exact) // self._hash_block_size
        start = from_passage
        # behind a hit, layers with a sliding window have lost what the repaired tokens would look at
        if exact_hit < from_passage or (exact_hit > from_passage and self._keeps_blocks):
            from_there, usual = (
                self._longest_hit(tracked, tracked.hashes.salted_from(block)) for block in (exact_hit, from_passage)
            )
            if from_there > usual or (from_there == usual and exact_hit > from_passage):
                start = exact_hit
        tracked.hashes.apply(start)

    def _begin_load(self, tracked: Tracked, blocks: Any, num_external_tokens: int) -> None:
        plan, request = tracked.plan, tracked.request
        assert tracked.lookup is not None
        found = tracked.lookup.result()
        start, tokens = found.end - num_external_tokens, list(request.prompt_token_ids)
        block_ids, report_tokens = blocks.get_block_ids(), tracked.order.report_tokens is True
        trace = trace_id(request.trace_headers)
        task = BlendTask(request.request_id, plan, tokens, start, found.end, block_ids, report_tokens, trace)
        self._admission.begin(request.request_id, tracked.cost(found))
        self._new_loads.append(task)

    def _longest_hit(self, tracked: Tracked, hashes: list[Any]) -> int:
        if self._manager is None or not self._manager.enable_caching:
            return 0
        length: int = self._manager.coordinator.find_longest_cache_hit(hashes, tracked.request.num_tokens - 1)[1]
        return length

    def _finish_report(self, tracked: Tracked, report: BlendReport, steps: Sequence[TimedStep] = ()) -> None:
        tracked.report = report
        self._passages.update(passage.tier for passage in report.passages if passage.tier is not None)
        self._passages["none"] += report.missed_passages
        if tracked.order.report_id is not None:
            self.control.set_report(tracked.order.report_id, report)
        if tracked.request.trace_headers:
            send_trace(tracked.request.trace_headers, report, steps, arrived_ns=tracked.arrived_ns)

    def _give_up(self, tracked: Tracked, reason: str) -> None:
        """Let vLLM prefill a request that it has not been promised a blend of."""
        request = tracked.request
        logger.exception("Request %s is prefilled: %s", request.request_id, reason, extra=_log_ids(request))
        self._finish_report(tracked, tracked.blank_report("prefilled", reason))

    def _report_refusal(self, request: Any, reason: str) -> None:
        report_id = order_report_id(request)
        if report_id is not None:
            report = BlendReport(outcome="prefilled", reason=reason, prompt_tokens=request.num_prompt_tokens)
            self.control.set_report(report_id, report)
            self.control.set_encoded(report_id, reason)


def _log_ids(request: Any) -> dict[str, str]:
    return log_ids(request.request_id, trace_id(request.trace_headers))


def _hashes(request: Any, order: KVBlendParams) -> SaltedHashes:
    """A request's block hashes, salted by what makes two blends of the same tokens the same; for an encode nothing but
    the request itself is."""
    plan = order.blend
    if plan is None:
        return SaltedHashes(request, request.request_id.encode())
    digest = plan_digest(plan, request.prompt_token_ids[plan.num_tokens :])
    return SaltedHashes(request, None if is_salt_of(request.cache_salt, digest) else digest)
