"""Turn every error into an OpenAI-shaped body: `{"error": {message, type, param, code}}`."""

import logging
import math
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from kvblend.core import errors
from kvblend.core.rest import ErrorBody, ErrorResponse

__all__ = ["ERROR_CODE", "error_body", "error_response", "install_error_handlers", "validation_error"]

logger = logging.getLogger(__name__)

ERROR_CODE = "error_code"
"""Under which a request's state has the code of the error that it was answered with."""
RETRY_AFTER_S = 5
# The first class that fits, so the narrower ones come first.
STATUSES: tuple[tuple[type[errors.KVBlendError], HTTPStatus], ...] = (
    (errors.DocumentTooLargeError, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (errors.UnsupportedDocumentError, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    (errors.InvalidRequestError, HTTPStatus.BAD_REQUEST),
    (errors.UnauthorizedError, HTTPStatus.UNAUTHORIZED),
    (errors.ForbiddenError, HTTPStatus.FORBIDDEN),
    (errors.NotFoundError, HTTPStatus.NOT_FOUND),
    (errors.ConflictError, HTTPStatus.CONFLICT),
    (errors.OverloadedError, HTTPStatus.TOO_MANY_REQUESTS),
    (errors.ShuttingDownError, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.EngineFailedError, HTTPStatus.BAD_GATEWAY),
    (errors.EngineTimeoutError, HTTPStatus.GATEWAY_TIMEOUT),
    (errors.EngineUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
)

COME_BACK = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)


def install_error_handlers(app: FastAPI) -> None:
    """Answer what a route raises on purpose in OpenAI's error shape; what nobody expected is for `RequestCount`."""

    @app.exception_handler(errors.KVBlendError)
    async def _ours(request: Request, error: errors.KVBlendError) -> JSONResponse:
        setattr(request.state, ERROR_CODE, error.code)
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(_invalid(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, errors.KVBlendError):
            return error_response(error.__cause__)
        if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return error_response(errors.DocumentTooLargeError(error.detail))
        phrase = {
            HTTPStatus.NOT_FOUND: f"no such route: {request.method} {request.url.path}",
            HTTPStatus.METHOD_NOT_ALLOWED: f"{request.url.path} does not take {request.method}",
        }.get(HTTPStatus(error.status_code), error.detail)
        code = HTTPStatus(error.status_code).name.lower()
        body = _body(error.status_code, message=phrase, code=code)
        return JSONResponse(body.model_dump(), status_code=error.status_code, headers=error.headers)


def error_response(error: Exception) -> JSONResponse:
    """The response for an error; one that is not ours is logged and answered by a bare 500."""
    if not isinstance(error, errors.KVBlendError):
        logger.error("unexpected error", exc_info=error)
    status = _status(error)
    headers = _headers(error, status)
    return JSONResponse(error_body(error).model_dump(), status_code=status, headers=headers)


def error_body(error: Exception) -> ErrorResponse:
    """The body alone, for streams that have begun."""
    if not isinstance(error, errors.KVBlendError):
        return _body(500, message="the service failed on this request; its log says how", code="internal_error")
    return _body(_status(error), message=error.message, code=error.code, param=error.param)


def validation_error(error: ValidationError) -> errors.InvalidRequestError:
    """What is wrong with a body that a route validates itself."""
    return _invalid([dict(item) for item in error.errors(include_url=False)])


def _invalid(items: list[dict[str, object]]) -> errors.InvalidRequestError:
    """The first thing that is wrong with a request's body or parameters, in words."""
    item = items[0]
    location = item["loc"]
    path = (
        [str(part) for part in location if part not in ("body", "query", "path")] if isinstance(location, tuple) else []
    )
    if item["type"] == "json_invalid":
        context = item.get("ctx")
        reason = context.get("error") if isinstance(context, dict) else ""
        return errors.InvalidRequestError(f"the body is not valid JSON: {reason} at character {'.'.join(path)}")
    param = ".".join(path) or None
    given = "" if item["type"] == "missing" else _shown(item.get("input"))
    return errors.InvalidRequestError(f"{param or 'the body'}: {item['msg']}{given}", param=param)


def _shown(value: object) -> str:
    text = repr(value)
    return f" (given: {text if len(text) <= 80 else text[:77] + '...'})"


def _headers(error: Exception, status: int) -> dict[str, str] | None:
    if status in COME_BACK:
        wait_s = error.retry_after_s if isinstance(error, errors.OverloadedError) else RETRY_AFTER_S
        return {"Retry-After": str(max(1, math.ceil(wait_s)))}
    return {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else None


def _status(error: Exception) -> int:
    if isinstance(error, errors.RefusedByEngineError):
        return error.status
    return next((status for kind, status in STATUSES if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def _body(status: int, *, message: str, code: str, param: str | None = None) -> ErrorResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return ErrorResponse(error=ErrorBody(message=message, type=kind, param=param, code=code))
