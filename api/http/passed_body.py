"""What goes on to vLLM as its client wrote it, but for orders to the connector and what keeps it within its tenant.

Orders are the service's alone: a client's own would pass by the gate and the reports.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from kvblend.api.access.engine_fields import engine_fields
from kvblend.api.http.errors import validation_error
from kvblend.api.http.json_body import read_json
from kvblend.core.errors import InvalidRequestError
from kvblend.core.rest.request import FewFields

__all__ = ["ORDERS", "Xargs", "passed_body", "without_orders"]

ORDERS = "kv_transfer_params"
XARGS = "vllm_xargs"
Scalar = str | int | float
Xargs = Annotated[dict[str, Scalar | Annotated[list[Scalar], Field(fail_fast=True)]], FewFields] | None

_XARGS: TypeAdapter[Xargs] = TypeAdapter(Xargs)


def passed_body(body: bytes, *, salt: str | None = None, fields: dict[str, Any] | None = None) -> bytes:
    """A JSON body for vLLM: the same bytes, unless there are orders in it, or something that reaches beyond its tenant,
    whose `salt` it gets. `fields`: the object that it is, where it has been read.

    Raises InvalidRequestError where it is no JSON, none that is read strictly, or nothing that can be salted.
    """
    value = _read(body) if fields is None else fields
    if not isinstance(value, dict):
        if salt is not None:
            raise InvalidRequestError("the body is not a JSON object")
        return body
    kept = engine_fields(without_orders(value), salt=salt)
    return body if kept == value else json.dumps(kept, ensure_ascii=False).encode()


def _read(body: bytes) -> Any:
    try:
        return read_json(body)
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error.msg} at character {error.pos}") from error


def without_orders(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request without orders, which vLLM takes in `vllm_xargs` too.

    Raises InvalidRequestError where those are of another type than vLLM's: it fails on that.
    """
    kept = {name: value for name, value in fields.items() if name != ORDERS}
    if kept.get(XARGS) is None:
        return kept
    try:
        _XARGS.validate_python(kept[XARGS])
    except ValidationError as error:
        reason = validation_error(error)
        raise InvalidRequestError(f"{XARGS}.{reason.message}", param=XARGS) from error
    xargs = {name: value for name, value in kept[XARGS].items() if name != ORDERS and "kvblend" not in name.lower()}
    return {**kept, XARGS: xargs}
