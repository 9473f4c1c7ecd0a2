"""Orders out of vLLM's own requests: in `kv_transfer_params` or in `vllm_xargs`, with the same strictness."""

import json
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.v1.request import Request

from kvblend.core.errors import InvalidRequestError
from kvblend.core.plan import KVBlendParams
from kvblend.core.report import BlendReport
from kvblend.vllm_connector.scheduler.handover import handed_report, is_handed_on, is_taken_over
from kvblend.vllm_connector.scheduler.orders import order_report_id, read_order

BLEND = {"spans": [{"kind": "passage", "num_tokens": 4, "encode_contexts": ["a" * 64]}], "recompute_ratio": 0.25}
ORDER: dict[str, Any] = {"version": 2, "report_id": "r", "blend": BLEND}
REFUSED: list[tuple[Any, str]] = [
    ("no order", "the order"),
    ([1], "the order"),
    (None, "the order"),
    ({}, "give one of blend and encode"),
    ({**ORDER, "report_id": 5}, "report_id"),
    ({**ORDER, "more": 1}, "more"),
    ({**ORDER, "version": 1}, "version"),
    ({**ORDER, "blend": {**BLEND, "recompute_ratio": 1.5}}, "blend.recompute_ratio"),
    ({**ORDER, "blend": {**BLEND, "selector": "mine"}}, "blend.selector"),
    ({**ORDER, "blend": {**BLEND, "spans": []}}, "blend.spans"),
    ({**ORDER, "blend": {**BLEND, "spans": [{**BLEND["spans"][0], "num_tokens": 9}]}}, "hold 9 tokens and the prompt"),  # type: ignore[index]
    ({"encode": {"spans": [[0, 9]]}}, "reach to 9, beyond the prompt's 8 tokens"),
]


def request_with(**extra_args: Any) -> Any:
    return Request("r", list(range(8)), SamplingParams(max_tokens=1, extra_args=extra_args or None), None)


@pytest.mark.parametrize("extra", [{}, {"kv_transfer_params": {"do_remote_decode": True}}])
def test_either_way_is_the_same_order(extra: dict[str, Any]) -> None:
    own = extra.get("kv_transfer_params", {})
    by_params = read_order(request_with(kv_transfer_params={**own, "kvblend": ORDER}))
    by_xargs = read_order(request_with(**extra, kvblend=json.dumps(ORDER)))
    assert by_params == by_xargs == KVBlendParams.model_validate(ORDER)
    assert read_order(request_with(**extra)) is None and read_order(request_with()) is None


@pytest.mark.parametrize(("order", "said"), REFUSED)
def test_either_way_refuses_the_same(order: Any, said: str) -> None:
    """In the same words, under the name of the field that holds it."""
    messages = []
    given: dict[str, dict[str, Any]] = {
        "kv_transfer_params": {"kv_transfer_params": {"kvblend": order}},
        "vllm_xargs": {"kvblend": json.dumps(order)},
    }
    for name, extra in given.items():
        with pytest.raises(InvalidRequestError, match=said) as raised:
            read_order(request_with(**extra))
        messages.append(raised.value.message.replace(name, ""))
    if isinstance(order, dict):
        assert messages[0] == messages[1]


def test_text_that_is_no_json_and_an_order_given_twice_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"vllm_xargs.kvblend: the order: Invalid JSON"):
        read_order(request_with(kvblend="{"))
    twice = request_with(kvblend=json.dumps(ORDER), kv_transfer_params={"kvblend": ORDER})
    with pytest.raises(InvalidRequestError, match=r"in kv_transfer_params.kvblend and in vllm_xargs.kvblend"):
        read_order(twice)


def test_whoever_sent_a_malformed_order_is_told_so() -> None:
    for broken in ({"report_id": "mine", "blend": 5}, {"report_id": "mine", "x": 1}):
        assert order_report_id(request_with(kvblend=json.dumps(broken))) == "mine"
        assert order_report_id(request_with(kv_transfer_params={"kvblend": broken})) == "mine"
    nameless: list[Any] = [{"report_id": 5}, {}, [1], "x", None]
    for each in nameless:
        assert order_report_id(request_with(kvblend=json.dumps(each))) is None
        assert order_report_id(request_with(kv_transfer_params={"kvblend": each})) is None


def test_what_a_prefill_nodes_answer_had_is_no_order() -> None:
    """A decode node gets it back as its request's `kv_transfer_params`."""
    report = BlendReport(outcome="blended", prompt_tokens=8)
    handed = {"do_remote_prefill": True, "do_remote_decode": False, "kvblend_report": report.model_dump(mode="json")}
    taken = request_with(kv_transfer_params=handed)
    assert read_order(taken) is None and handed_report(taken) == report
    assert is_taken_over(taken) and not is_handed_on(taken)
    assert is_handed_on(request_with(kv_transfer_params={"do_remote_decode": True}))
    for none in ({}, {"kvblend_report": None}, {"kvblend_report": "x"}, {"kvblend_report": {"outcome": 5}}):
        assert handed_report(request_with(kv_transfer_params=none)) is None
    assert not is_taken_over(request_with()) and handed_report(request_with()) is None
