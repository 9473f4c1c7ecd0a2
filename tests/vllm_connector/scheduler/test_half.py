"""The scheduler half on vLLM's own requests and hashes: beside other connectors, and between two kinds of nodes."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import EngineArgs, SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from kvblend.api.engine.control import ControlClient
from kvblend.core.control import Held
from kvblend.core.order_fields import with_order
from kvblend.core.plan import REPORT, ContextPlan, EncodeOrder, KVBlendParams, Span
from kvblend.core.report import BlendReport, PassageReport
from kvblend.core.settings import Settings
from kvblend.store import PassageKVKey, TieredStore
from kvblend.vllm_connector.metadata import StepResults
from kvblend.vllm_connector.scheduler import SchedulerHalf
from kvblend.vllm_connector.scheduler.lookups import Found
from kvblend.vllm_connector.siblings import NO_SIBLINGS, Siblings
from tests.store.samples import make_kv

BLOCK, NUM_TOKENS = 32, 330
PLAN = ContextPlan(
    spans=(Span(kind="exact", num_tokens=64), Span(kind="passage", num_tokens=256, encode_contexts=("a" * 64,)))
)
ORDER = KVBlendParams(report_id="mine", blend=PLAN)
OFFLOADING = Siblings([{"kv_connector": "KVBlendConnector"}, {"kv_connector": "OffloadingConnector"}])
NIXL = Siblings([{"kv_connector": "NixlConnector"}, {"kv_connector": "KVBlendConnector"}])
HAND_ON, TAKE_OVER = {"do_remote_decode": True}, {"do_remote_prefill": True}
Make = Callable[[Siblings], SchedulerHalf]


@pytest.fixture
def make_half(tiny_model_path: Callable[[str], Path], tmp_path: Path) -> Iterator[Make]:
    init_none_hash(sha256)
    config = EngineArgs(model=str(tiny_model_path("llama3rope")), block_size=BLOCK).create_engine_config()
    settings = Settings(cpu_bytes=0, disk_path=tmp_path / "disk", control=f"ipc://{tmp_path}/control.sock")
    groups = SimpleNamespace(hash_block_size=BLOCK, kv_cache_groups=[])
    with ExitStack() as closing:

        def make(siblings: Siblings) -> SchedulerHalf:
            half = SchedulerHalf(config, groups, settings, siblings)
            closing.callback(half.shutdown)
            return half

        yield make


def request_of(order: KVBlendParams | None, *, salted: bool = False, **params: Any) -> Any:
    tokens = list(range(NUM_TOKENS))
    body: dict[str, Any] = with_order({}, order, tokens, salted=salted, proxied=True) if order else {}
    extra = {**body.get("vllm_xargs", {}), **({"kv_transfer_params": params} if params else {})}
    return Request(
        "request", tokens, SamplingParams(max_tokens=1, extra_args=extra or None), None,
        block_hasher=get_request_block_hasher(BLOCK, sha256), cache_salt=body.get("cache_salt"),
    )  # fmt: skip


def find(half: SchedulerHalf, end: int) -> None:
    """The store has the plan's passage, up to `end`."""
    found: Future[Found] = Future()
    found.set_result(Found(end, reused=end - 64, fresh=0, missed=0, missed_behind=0))
    half._tracked["request"].lookup = found


SENT: dict[str, Any] = ORDER.model_dump(mode="json", exclude_none=True)
EXACT, PASSAGE = SENT["blend"]["spans"]


def later_plan(**fields: Any) -> dict[str, Any]:
    return {**SENT, "blend": {**SENT["blend"], **fields}}


LATER: dict[str, dict[str, Any]] = {
    "version": {**SENT, "version": 3},
    "deadline_ms": {**SENT, "deadline_ms": 50},
    "blend.layers": later_plan(layers=[1, 2]),
    "blend.selector": later_plan(selector="learned"),
    "blend.spans.1.kind": later_plan(spans=[EXACT, {**PASSAGE, "kind": "summary"}]),
    "blend.spans.1.tier": later_plan(spans=[EXACT, {**PASSAGE, "tier": "peer"}]),
}
"""Orders that versions to come might send, by what this one does not know of each."""


class PrefixCache:
    """vLLM's, as far as the half asks it: which block hashes lie in it."""

    enable_caching = True

    def __init__(self, block_hashes: Sequence[Any]) -> None:
        self.held, self.coordinator = list(block_hashes), self

    def find_longest_cache_hit(self, block_hashes: list[Any], max_length: int) -> tuple[None, int]:
        hit = list(takewhile(self.held.__contains__, block_hashes[: max_length // BLOCK]))
        return None, len(hit) * BLOCK


async def test_a_service_is_told_what_lies_near_and_how_busy_the_engine_is(make_half: Make, tmp_path: Path) -> None:
    half, context, stored, other = make_half(NO_SIBLINGS), "a" * 64, "b" * 64, "c" * 64
    with TieredStore.from_settings(Settings(cpu_bytes=0, disk_path=tmp_path / "disk")) as store:
        client = ControlClient(f"ipc://{tmp_path}/control.sock")
        try:
            info = await client.info()
            assert info is not None and info.places == store.places
            ((start, end),) = info.head_ranges
            for name in ((context, stored), (other, stored)):
                key = PassageKVKey(info.model_fingerprint, *name, start, end)
                store.put(key, make_kv(0, shape=(2, 2, 5, end - start, 8)), capture_position=0)
            names = [(context, stored), (context, other), (other, stored)]
            for request in (request_of(None), request_of(ORDER)):
                half.on_new_request(request)
                assert await client.held(names, timeout_s=10) == Held(passages=[True, False, True], num_requests=1)
                half.request_finished(request)
            assert await client.held([(context, "no hash")], timeout_s=10) is None, "which it says, and lives on"
            assert await client.held(names, timeout_s=10) == Held(passages=[True, False, True], num_requests=0)
        finally:
            await client.close()


@pytest.mark.parametrize("siblings", [NO_SIBLINGS, OFFLOADING], ids=["alone", "beside the offload"])
@pytest.mark.parametrize("num_exact", [0, 1, 2, 4])
def test_the_same_question_finds_its_blend_again(make_half: Make, siblings: Siblings, num_exact: int) -> None:
    """However much of the exact beginning vLLM had when it was blended; the preamble fills two blocks."""
    half, cache = make_half(siblings), PrefixCache(request_of(None).block_hashes[:num_exact])
    half.bind_kv_cache_manager(cache)
    asked = []
    for outcome in ("blended", "prefix_hit"):
        request = request_of(ORDER)
        half.on_new_request(request)
        find(half, 320)
        hit = cache.find_longest_cache_hit(request.block_hashes, NUM_TOKENS - 1)[1]
        assert (half.num_new_matched_tokens(request, hit) == 0) is (outcome == "prefix_hit"), hit
        report = half._tracked["request"].report
        assert (report.outcome if report else "blended") == outcome
        asked.append(list(request.block_hashes))
        cache.held += request.block_hashes
        half.request_finished(request)
    assert asked[0] == asked[1] and asked[0][:num_exact] == cache.held[:num_exact]


@pytest.mark.parametrize("siblings", [NO_SIBLINGS, OFFLOADING], ids=["alone", "beside the offload"])
def test_what_others_have_taken_down_is_never_salted_anew(make_half: Make, siblings: Siblings) -> None:
    """A preempted blend's exact beginning has left the prefix cache: alone it is blended from the front again; beside
    a connector that knows its blocks by the old hashes, it is prefilled."""
    half, request = make_half(siblings), request_of(ORDER)
    exact = list(request_of(None).block_hashes)
    half.on_new_request(request)
    find(half, 320)
    assert half.num_new_matched_tokens(request, 64) == 256
    assert request.block_hashes[:2] == exact[:2] and not set(request.block_hashes[2:]) & set(exact)
    salted = list(request.block_hashes)
    again = half.num_new_matched_tokens(request, 0)
    if siblings is NO_SIBLINGS:
        assert again == 320 and not set(request.block_hashes) & set(exact)
        return
    assert again == 0 and request.block_hashes == salted
    report = half.request_finished(request)
    assert report is not None and "preempted" in report[REPORT]["reason"]


@pytest.mark.parametrize(("siblings", "params"), [(NO_SIBLINGS, HAND_ON), (NIXL, HAND_ON), (NIXL, {})])
def test_what_leaves_the_engine_has_the_plans_salt_or_is_prefilled(
    make_half: Make, siblings: Siblings, params: dict[str, Any]
) -> None:
    half, bare = make_half(siblings), request_of(ORDER, **params)
    exact = list(bare.block_hashes)
    half.on_new_request(bare)
    assert half.num_new_matched_tokens(bare, 0) == 0 and half.num_tracked == 0 and bare.block_hashes == exact
    salted = request_of(ORDER, salted=True, **params)
    apart = list(salted.block_hashes)
    assert not set(apart) & set(exact)
    half.on_new_request(salted)
    find(half, 320)
    assert half.num_new_matched_tokens(salted, 0) == 320 and salted.block_hashes == apart
    find(half, 0)
    assert half.num_new_matched_tokens(salted, 0) == 0 and salted.block_hashes == apart


@pytest.mark.parametrize("salted", [False, True])
def test_a_prompt_that_another_engine_prefilled_is_not_blended_again(make_half: Make, salted: bool) -> None:
    """Its KV is kept apart from the first block on, and the other engine's report passed on, as long as it came."""
    report = BlendReport(outcome="blended", prompt_tokens=NUM_TOKENS, context_tokens=320)
    half = make_half(NIXL)
    exact = set(request_of(None).block_hashes)
    for failed in ([], ["request"]):
        request = request_of(ORDER, salted=salted, **TAKE_OVER, **{REPORT: report.model_dump(mode="json")})
        half.on_new_request(request)
        assert half.num_new_matched_tokens(request, 0) == 0 and half.num_tracked == 0
        assert not set(request.block_hashes) & exact
        half.update_connector_output(None, [], failed)
        given = half.request_finished(request)
        assert given is not None
        told = BlendReport.model_validate(given[REPORT])
        assert told == report if not failed else told.outcome == "prefilled" and "did not come over" in str(told.reason)
    plain = request_of(None, **TAKE_OVER)
    half.on_new_request(plain)
    assert set(plain.block_hashes) == exact and half.request_finished(plain) is None


def test_of_what_is_encoded_the_beginning_alone_is_offloaded(make_half: Make) -> None:
    half = make_half(OFFLOADING)
    request = request_of(KVBlendParams(encode=EncodeOrder(spans=((64, 128), (128, 300)))), do_remote_decode=True)
    half.on_new_request(request)
    assert request.kv_transfer_params == {"do_remote_decode": True, "max_offload_tokens": 64}


@pytest.mark.parametrize("unknown", LATER)
async def test_an_order_of_a_later_version_is_prefilled(make_half: Make, tmp_path: Path, unknown: str) -> None:
    """Like a request without one; whoever sent it is told what is not known. Control: the order of this version."""
    half = make_half(NO_SIBLINGS)

    def asked(order: dict[str, Any]) -> tuple[int | None, bool]:
        """The tokens that a blend brings, and whether vLLM's hashes are left as they are."""
        request = request_of(None, kvblend=order)
        half.on_new_request(request)
        if half.num_tracked:
            find(half, 320)
        return half.num_new_matched_tokens(request, 0), request.block_hashes == request_of(None).block_hashes

    assert asked(LATER[unknown]) == (0, True)
    channel = ControlClient(f"ipc://{tmp_path}/control.sock")
    report = await channel.report("mine")
    await channel.close()
    assert report is not None and report.outcome == "prefilled" and f"{unknown}: " in str(report.reason)
    assert asked(SENT) == (320, False)


def test_passages_count_by_the_tier_they_came_from(make_half: Make) -> None:
    """Those that were computed anew, too: in a blend, behind its end, and where nothing is stored; once each."""
    half = make_half(NO_SIBLINGS)

    def counted(found: Found, num_computed: int = 0, report: BlendReport | None = None) -> dict[str, int]:
        request, lookup = request_of(ORDER), Future[Found]()
        half.on_new_request(request)
        lookup.set_result(found)
        half._tracked["request"].lookup = lookup
        for _ in range(2):
            half.num_new_matched_tokens(request, num_computed)
        half.update_connector_output(StepResults(reports={"request": report} if report else {}), [], [])
        half.request_finished(request)
        stats = half.take_stats()
        return {} if stats is None else dict(stats.data["passages"])

    passages = [PassageReport(start=64, num_tokens=100, tier="disk"), PassageReport(start=164, num_tokens=36)]
    blended = BlendReport(outcome="blended", context_tokens=200, missed_passages=1, passages=passages)
    found = Found(200, reused=100, fresh=36, missed=2, missed_behind=1)
    assert counted(found, report=blended) == {"disk": 1, "none": 2}
    assert counted(Found(0, reused=0, fresh=0, missed=3, missed_behind=3)) == {"none": 3}
    assert counted(found, num_computed=320) == {}  # a hit of vLLM's own cache
