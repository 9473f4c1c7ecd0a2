"""From what went wrong on the wire to the error tree of core."""

import httpx
from pydantic import ValidationError

from kvblend.core.errors import (
    ConflictError,
    DocumentTooLargeError,
    EngineUnavailableError,
    ForbiddenError,
    InvalidRequestError,
    KVBlendError,
    NotFoundError,
    OverloadedError,
    UnauthorizedError,
    UnsupportedDocumentError,
)
from kvblend.core.rest import ErrorBody, ErrorResponse

__all__ = ["connection_error", "error_of", "status_error"]

BY_STATUS: dict[int, type[KVBlendError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    413: DocumentTooLargeError,
    415: UnsupportedDocumentError,
    429: OverloadedError,
    502: EngineUnavailableError,
    503: EngineUnavailableError,
    504: EngineUnavailableError,
}


def _by_code(error_class: type[KVBlendError]) -> dict[str, type[KVBlendError]]:
    """Index an error class and all below it by `code`."""
    classes = {error_class.code: error_class}
    for child in error_class.__subclasses__():
        classes |= _by_code(child)
    return classes


BY_CODE = _by_code(KVBlendError)


def error_of(body: ErrorBody, *, status: int | None = None) -> KVBlendError:
    """Make the error that an OpenAI-shaped body names: by its code, else by the HTTP status."""
    error_class = BY_CODE.get(body.code or "")
    if error_class is None:
        fallback = InvalidRequestError if status is not None and 400 <= status < 500 else KVBlendError
        error_class = BY_STATUS.get(status or 0, fallback)
    return error_class(body.message, param=body.param)


def status_error(response: httpx.Response) -> KVBlendError:
    """Make the error of an unsuccessful response whose body was read."""
    try:
        body = ErrorResponse.model_validate_json(response.content).error
    except ValidationError:  # a proxy in between answers in its own shape
        body = ErrorBody(message=f"HTTP {response.status_code} from {response.url}: {response.text[:200]}", type="http")
    return error_of(body, status=response.status_code)


def connection_error(url: httpx.URL | str, error: httpx.TransportError) -> EngineUnavailableError:
    """Make the error of a service that cannot be reached, or whose answer broke off."""
    return EngineUnavailableError(f"the kvblend service at {url} does not answer: {error or type(error).__name__}")
