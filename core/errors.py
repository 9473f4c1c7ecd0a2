"""The one tree of errors.

KVBlendError
├── InvalidRequestError          the caller's mistake; names the value and the bound (HTTP 400)
│   ├── PromptTooLongError       the prompt is beyond the model's length (400)
│   ├── RefusedByEngineError     vLLM itself refuses it, with the HTTP status that vLLM gives
│   ├── DocumentTooLargeError    (413)
│   └── UnsupportedDocumentError a document that no parser can read (415)
├── UnauthorizedError            the request carries no valid API key (401)
├── NotFoundError                no such collection, document or job (404)
├── ConflictError                the name is taken by something else (409)
├── OverloadedError              the service has as much to do as it takes (429)
├── UnsupportedModelError        a model or engine setting that kvblend does not blend; raised at start
├── CorruptPassageKVError        a passage KV file that fails its checks
├── StoreFullError               a tier cannot make room within its byte budget
├── ModelFetchError              a model's files cannot be fetched, or are not the files that were meant
└── EngineUnavailableError       vLLM does not answer (503)

A cache miss is None, not an error.
"""

__all__ = [
    "ConflictError",
    "CorruptPassageKVError",
    "DocumentTooLargeError",
    "EngineUnavailableError",
    "InvalidRequestError",
    "KVBlendError",
    "ModelFetchError",
    "NotFoundError",
    "OverloadedError",
    "PromptTooLongError",
    "RefusedByEngineError",
    "StoreFullError",
    "UnauthorizedError",
    "UnsupportedDocumentError",
    "UnsupportedModelError",
]


class KVBlendError(Exception):
    """Base of every error that kvblend raises on purpose.

    `code` is a stable machine-readable word; `param` names the offending field where there is one.
    """

    code = "kvblend_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequestError(KVBlendError):
    """The caller's mistake: the message names the value and the bound."""

    code = "invalid_request"


class PromptTooLongError(InvalidRequestError):
    """The prompt and the tokens to generate do not fit the model's length."""

    code = "context_length_exceeded"


class RefusedByEngineError(InvalidRequestError):
    """vLLM refuses the request, in its own words and with `status`."""

    code = "refused_by_engine"

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message, param=param)
        self.status = status


class DocumentTooLargeError(InvalidRequestError):
    """A document is larger than the service takes."""

    code = "document_too_large"


class UnsupportedDocumentError(InvalidRequestError):
    """A document that no parser can read."""

    code = "unsupported_document"


class UnauthorizedError(KVBlendError):
    """The service has an API key, and the request does not carry it."""

    code = "invalid_api_key"


class NotFoundError(KVBlendError):
    """No such collection, document or job."""

    code = "not_found"


class ConflictError(KVBlendError):
    """The name is taken by something else."""

    code = "conflict"


class OverloadedError(KVBlendError):
    """The service has as much to do as it takes: later it takes more."""

    code = "overloaded"


class UnsupportedModelError(KVBlendError):
    """A model or an engine setting that kvblend does not blend."""

    code = "unsupported_model"


class CorruptPassageKVError(KVBlendError):
    """A passage KV file fails its header's or a layer's check."""

    code = "corrupt_passage_kv"


class StoreFullError(KVBlendError):
    """A tier cannot make room within its byte budget."""

    code = "store_full"


class ModelFetchError(KVBlendError):
    """A model's files cannot be fetched, or are not the files that were meant."""

    code = "model_fetch_failed"


class EngineUnavailableError(KVBlendError):
    """vLLM does not answer, or died while it did."""

    code = "engine_unavailable"
