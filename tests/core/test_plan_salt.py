"""A blend's `cache_salt` as vLLM takes it, told apart by all that its KV depends on, and how orders travel."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.entrypoints.generate.base.protocol import validate_cache_salt

from kvblend.core.order_fields import with_order
from kvblend.core.plan import ContextPlan, EncodeOrder, KVBlendParams, Span
from kvblend.core.plan_salt import has_plan_salt, plan_salt

SPANS = (Span(kind="exact", num_tokens=3), Span(kind="passage", num_tokens=4, encode_contexts=("a" * 64,)))
PLAN = ContextPlan(spans=SPANS)
PROMPT = list(range(10))
QUESTION = PROMPT[7:]


@given(own=st.none() | st.text(min_size=1), ratio=st.floats(0, 1))
def test_vllm_takes_it_and_the_engine_knows_it_again(own: str | None, ratio: float) -> None:
    plan = ContextPlan(spans=SPANS, recompute_ratio=ratio)
    salt = plan_salt(plan, QUESTION, own=own)
    validate_cache_salt(salt)
    sent = ContextPlan.model_validate_json(plan.model_dump_json(exclude_none=True))
    assert has_plan_salt(salt, sent, tuple(QUESTION))
    assert not has_plan_salt(own, sent, QUESTION) and not has_plan_salt(None, sent, QUESTION)


def test_all_that_a_blend_depends_on_enters_it() -> None:
    """Its plan, its tenant's salt in it, its question, and the salt that the request had."""
    others = [
        ContextPlan(spans=SPANS, recompute_ratio=0.3),
        ContextPlan(spans=SPANS, selector="none"),
        ContextPlan(spans=SPANS, salt="b" * 64),
        ContextPlan(spans=SPANS, salt="c" * 64),
        ContextPlan(spans=SPANS[1:]),
    ]
    salts = [plan_salt(plan, QUESTION) for plan in (PLAN, *others)]
    salts += [plan_salt(PLAN, [7, 8]), *(plan_salt(PLAN, QUESTION, own=own) for own in ("one tenant", "another"))]
    assert len({*salts}) == len(salts)
    assert not any(has_plan_salt(salt, PLAN, QUESTION) for salt in salts[1:-2])


@pytest.mark.parametrize("order", [KVBlendParams(blend=PLAN), KVBlendParams(encode=EncodeOrder(spans=((0, 3),)))])
@pytest.mark.parametrize("proxied", [False, True])
@pytest.mark.parametrize("salted", [False, True])
def test_an_order_leaves_the_rest_of_a_body_as_it_is(order: KVBlendParams, proxied: bool, salted: bool) -> None:
    body = {"prompt": PROMPT, "vllm_xargs": {"session": "s"}, "cache_salt": "tenant"}
    sent: dict[str, Any] = with_order(body, order, PROMPT, salted=salted, proxied=proxied)
    given = json.loads(sent["vllm_xargs"].pop("kvblend")) if proxied else sent.pop("kv_transfer_params")["kvblend"]
    assert KVBlendParams.model_validate(given) == order
    salt = plan_salt(PLAN, QUESTION, own="tenant") if salted and order.blend else "tenant"
    assert sent == {**body, "cache_salt": salt} and body["vllm_xargs"] == {"session": "s"}
