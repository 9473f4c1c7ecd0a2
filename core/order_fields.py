"""How an order travels in the body of a request to vLLM."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvblend.core.plan import ORDER, KVBlendParams
from kvblend.core.plan_salt import plan_salt

__all__ = ["with_order"]


def with_order(
    body: Mapping[str, Any],
    order: KVBlendParams,
    prompt_ids: Sequence[int],
    *,
    salted: bool = False,
    proxied: bool = False,
) -> dict[str, Any]:
    """The body of a request for the prompt `prompt_ids` with its order.

    `salted`: a plan's KV, or the names of its blocks, leave the engine, and `cache_salt` becomes the plan's
    (`kvblend.core.plan_salt`), with what it is made of. `proxied`: the order goes in `vllm_xargs`, as JSON text, since
    what hands requests from prefill nodes to decode nodes replaces `kv_transfer_params`.
    """
    fields = dict(body)
    if proxied:
        fields["vllm_xargs"] = {**(body.get("vllm_xargs") or {}), ORDER: order.model_dump_json(exclude_none=True)}
    else:
        fields["kv_transfer_params"] = {ORDER: order.model_dump(mode="json", exclude_none=True)}
    if salted and order.blend is not None:
        question_ids = prompt_ids[order.blend.num_tokens :]
        fields["cache_salt"] = plan_salt(order.blend, question_ids, own=body.get("cache_salt"))
    return fields
