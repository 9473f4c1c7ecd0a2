"""How an order travels in a request to vLLM: in its body, and by which server a router is to choose."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvblend.core.identity import token_hash
from kvblend.core.plan import ORDER, KVBlendParams
from kvblend.core.plan_salt import plan_salt

__all__ = ["SESSION", "session_id", "with_order"]

SESSION = "x-session-id"
"""The header by which routers keep requests of one session on one server."""


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


def session_id(context_ids: Sequence[int]) -> str:
    """What stands in the header `SESSION` of a blended request: 64 hex digits that all questions over the same context,
    the tokens of its plan's spans, share. The server that blended it last has its passages nearest."""
    return token_hash(context_ids)
