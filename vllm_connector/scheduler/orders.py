"""Read the order that a request carries, and check it against the request's own tokens."""

from typing import Any

from pydantic import ValidationError

from kvblend.core.errors import InvalidRequestError
from kvblend.core.plan import KVBlendParams

__all__ = ["read_order"]


def read_order(request: Any) -> KVBlendParams | None:
    """The request's kvblend order, or None where it has none.

    Raises InvalidRequestError where the order is malformed or does not fit the prompt.
    """
    params = request.kv_transfer_params
    if not isinstance(params, dict) or "kvblend" not in params:
        return None
    try:
        order = KVBlendParams.model_validate(params["kvblend"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the order"
        raise InvalidRequestError(f"kv_transfer_params.kvblend: {where}: {first['msg']}") from error
    if request.prompt_token_ids is None or request.mm_features:
        raise InvalidRequestError("kvblend takes prompts of token ids, without embeddings or media")
    num_tokens = request.num_prompt_tokens
    if order.blend is not None and order.blend.num_tokens >= num_tokens:
        raise InvalidRequestError(
            f"the plan's spans hold {order.blend.num_tokens} tokens and the prompt {num_tokens}: "
            "at least one token must follow the last span"
        )
    if order.encode is not None and order.encode.end > num_tokens:
        raise InvalidRequestError(f"encode.spans reach to {order.encode.end}, beyond the prompt's {num_tokens} tokens")
    return order
