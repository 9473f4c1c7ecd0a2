"""Read the order that a request carries, and check it against the request's own tokens."""

from typing import Any

from pydantic import BaseModel, ValidationError

from kvblend.core.errors import InvalidRequestError
from kvblend.core.plan import ORDER, KVBlendParams

__all__ = ["order_report_id", "read_order"]


def read_order(request: Any) -> KVBlendParams | None:
    """The request's kvblend order, of `kv_transfer_params` or, as JSON text, of `vllm_xargs`; None where it has none.

    Raises InvalidRequestError where the order is malformed, does not fit the prompt, or is given twice.
    """
    given = _given(request)
    if not given:
        return None
    if len(given) > 1:
        raise InvalidRequestError(f"the order is given in {' and in '.join(given)}: give it in one of them")
    ((where, raw),) = given.items()
    try:
        order = KVBlendParams.model_validate_json(raw) if isinstance(raw, str) else KVBlendParams.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the order"
        raise InvalidRequestError(f"{where}: {field}: {first['msg']}") from error
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


class _Named(BaseModel):
    report_id: str | None = None


def order_report_id(request: Any) -> str | None:
    """The `report_id` of an order that may be malformed: whoever sent it may be waiting."""
    for raw in _given(request).values():
        try:
            order = _Named.model_validate_json(raw) if isinstance(raw, str) else _Named.model_validate(raw)
        except ValidationError:
            continue
        if order.report_id is not None:
            return order.report_id
    return None


def _given(request: Any) -> dict[str, Any]:
    """Orders as they came, by the field that holds them."""
    params, sampling = request.kv_transfer_params, request.sampling_params
    given: dict[str, Any] = {}
    if isinstance(params, dict) and ORDER in params:
        given["kv_transfer_params.kvblend"] = params[ORDER]
    xargs = sampling.extra_args if sampling is not None else None
    if xargs and ORDER in xargs:
        given["vllm_xargs.kvblend"] = xargs[ORDER]
    return given
