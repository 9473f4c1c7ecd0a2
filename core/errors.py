"""The one tree of errors.

KVBlendError
├── InvalidRequestError          the caller's mistake; names the value and the bound (HTTP 400)
│   ├── PromptTooLongError       the prompt is beyond the model's length (400)
│   ├── RefusedByEngineError     vLLM itself refuses it, with the HTTP status that vLLM gives
│   ├── DocumentTooLargeError    (413)
│   └── UnsupportedDocumentError a document that no parser can read (415)
├── UnauthorizedError            the request carries no valid API key (401)
├── ForbiddenError               the role of its API key may not do this (403)
├── NotFoundError                no such collection, document or job (404)
├── ConflictError                the name is taken by something else (409)
├── OverloadedError              the service has as much to do as it takes (429)
│   ├── TooManyRequestsError     as many answers are under way as may be
│   ├── TooManyJobsError         as many ingests
│   └── RateLimitedError         the tenant has asked as often as it may
├── ShuttingDownError            the service is on its way to its end (503)
├── UnsupportedModelError        a model or engine setting that kvblend does not blend; raised at start
├── CorruptPassageKVError        a passage KV file that fails its checks
├── StoreFullError               a tier cannot make room within its byte budget
├── ModelFetchError              a model's files cannot be fetched, or are not the files that were meant
└── EngineUnavailableError       vLLM, or a server that embeds or reranks, does not answer (503)
    ├── EngineFailedError        it answers that it failed, in its own words (502)
    └── EngineTimeoutError       it sent nothing for longer than KVBLEND_ENGINE_TIMEOUT (504)

A cache miss is None, not an error.
"""

__all__ = [
    "ConflictError",
    "CorruptPassageKVError",
    "DocumentTooLargeError",
    "EngineFailedError",
    "EngineTimeoutError",
    "EngineUnavailableError",
    "ForbiddenError",
    "InvalidRequestError",
    "KVBlendError",
    "ModelFetchError",
    "NotFoundError",
    "OverloadedError",
    "PromptTooLongError",
    "RateLimitedError",
    "RefusedByEngineError",
    "ShuttingDownError",
    "StoreFullError",
    "TooManyJobsError",
    "TooManyRequestsError",
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


class ForbiddenError(KVBlendError):
    """The request's API key is valid, and its role may not do this."""

    code = "forbidden"


class NotFoundError(KVBlendError):
    """No such collection, document or job."""

    code = "not_found"


class ConflictError(KVBlendError):
    """The name is taken by something else."""

    code = "conflict"


class OverloadedError(KVBlendError):
    """The service has as much to do as it takes; it reckons that it takes more in `retry_after_s` seconds."""

    code = "overloaded"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float = 5.0) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class TooManyRequestsError(OverloadedError):
    """As many answers, lookups or uploads are under way as the service takes."""

    code = "too_many_requests"


class TooManyJobsError(OverloadedError):
    """As many ingest jobs wait or run as the service takes."""

    code = "too_many_jobs"


class RateLimitedError(OverloadedError):
    """The tenant has sent as many requests as it may for now."""

    code = "rate_limited"


class ShuttingDownError(KVBlendError):
    """The service is on its way to its end: another one, or the next one, takes requests."""

    code = "shutting_down"


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


class EngineFailedError(EngineUnavailableError):
    """vLLM answers that it failed on the request, in its own words."""

    code = "engine_failed"


class EngineTimeoutError(EngineUnavailableError):
    """vLLM takes the request and sends nothing for longer than it may."""

    code = "engine_timeout"
