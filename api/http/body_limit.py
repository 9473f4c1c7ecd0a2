"""Refuse bodies beyond a limit while they arrive, before anything holds them whole."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvblend.api.http.errors import error_response
from kvblend.core.errors import DocumentTooLargeError

__all__ = ["BodyLimit"]

OTHER_BYTES = 64 << 10
"""What a body may hold beside its document."""

MAX_FILES = 16
"""Full-sized files that one upload may hold; these are spooled to temporary files, not to memory."""


class BodyLimit:
    """ASGI middleware: 413 as soon as a body is, or says that it is, too long."""

    def __init__(self, app: ASGIApp, *, max_document_bytes: int) -> None:
        self._app = app
        self._max_document_bytes = max_document_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        is_upload = headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data")
        limit = self._max_document_bytes * (MAX_FILES if is_upload else 1) + OTHER_BYTES
        message = f"the body is larger than {limit} bytes, which is what the service takes"
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            await error_response(DocumentTooLargeError(message))(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            part = await receive()
            num_bytes += len(part.get("body", b""))
            if num_bytes > limit:
                raise HTTPException(413, message)  # what FastAPI lets through where it reads a body
            return part

        await self._app(scope, counted, send)
