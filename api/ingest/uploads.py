"""Documents as they arrive, one as JSON or files as multipart, checked before anything is made of them."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from kvblend.api.access.caller import caller_of
from kvblend.api.http.errors import validation_error
from kvblend.api.ingest.upload_room import UploadRoom
from kvblend.core.errors import DocumentTooLargeError, InvalidRequestError, UnsupportedDocumentError
from kvblend.core.rest import DocumentCreate
from kvblend.core.text import is_text
from kvblend.retriever import require_media_type

__all__ = ["UPLOAD_BODY", "Upload", "read_uploads"]

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")
MAX_NAME = 512
MAX_FILES = 1000
FILES_FIELD = "files"
UPLOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": DocumentCreate.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    FILES_FIELD: {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                        "minItems": 1,
                        "maxItems": MAX_FILES,
                    }
                },
                "required": [FILES_FIELD],
                "additionalProperties": False,
            }
        },
    },
}
"""OpenAPI's description of what `read_uploads` reads."""
UNNAMED_TYPES = ("application/octet-stream", "")


@dataclass(frozen=True)
class Upload:
    """A document's bytes and what is said of them; without a media type the name tells it."""

    id: str
    name: str
    media_type: str | None
    data: bytes
    metadata: dict[str, Any] = field(default_factory=dict)


async def read_uploads(request: Request, *, max_document_bytes: int, room: UploadRoom) -> list[Upload]:
    """Read a request's documents, and take `room` for their bytes, which is left to whoever has them.

    Raises InvalidRequestError, DocumentTooLargeError, OverloadedError where there is none, UnsupportedDocumentError for
    another type of body.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return await _read_files(request, max_document_bytes, room)
    if media_type != "application/json":
        raise UnsupportedDocumentError(
            f"a document comes as application/json or multipart/form-data, not as {media_type or 'nothing named'}"
        )
    upload = await _read_json(request, max_document_bytes)
    with room.taken(len(upload.data), caller_of(request).tenant):
        return [upload]


def check_name(name: str, *, param: str) -> str:
    """Return a document's id or name where it is one. Raises InvalidRequestError."""
    if not 1 <= len(name) <= MAX_NAME:
        raise InvalidRequestError(f"{param} has {len(name)} characters; it must have 1 to {MAX_NAME}", param=param)
    if CONTROL_CHARACTERS.search(name):
        raise InvalidRequestError(f"{param} {name!r} holds a control character", param=param)
    if not is_text(name):
        raise InvalidRequestError(f"{param} {name!r} holds half a surrogate pair, which is no text", param=param)
    step = next((step for step in re.split(r"[/\\]", name) if step in (".", "..")), None)
    if step is not None:
        raise InvalidRequestError(
            f"{param} {name!r} holds a {step!r} step, which no name of a document may", param=param
        )
    return name


async def _read_files(request: Request, max_document_bytes: int, room: UploadRoom) -> list[Upload]:
    try:
        form = await request.form(max_files=MAX_FILES, max_fields=1)
    except MultiPartException as error:
        raise InvalidRequestError(f"the multipart body is broken: {error.message}") from error
    except UnicodeError as error:  # of a file name, in the charset that the body names
        raise InvalidRequestError(f"the multipart body is not in the charset that it names: {error}") from error
    try:
        files = [value for name, value in form.multi_items() if name == FILES_FIELD]
        if not files or len(files) != len(form.multi_items()):
            raise InvalidRequestError(
                f"a multipart body holds files, each in a field named {FILES_FIELD!r}", param=FILES_FIELD
            )
        received = [_check_file(file, max_document_bytes) for file in files]
        names = Counter(each.name for each in received)
        name, times = names.most_common(1)[0]
        if times > 1:
            raise InvalidRequestError(f"two of the documents have the id {name!r}", param=FILES_FIELD)
        with room.taken(sum(each.num_bytes for each in received), caller_of(request).tenant):
            return [await each.read() for each in received]
    finally:
        await form.close()


@dataclass(frozen=True)
class _ReceivedFile:
    """A file of a multipart body, in memory or, a large one, on disk."""

    file: UploadFile
    name: str
    media_type: str | None
    num_bytes: int

    async def read(self) -> Upload:
        data = await self.file.read()
        return _not_empty(Upload(id=self.name, name=self.name, media_type=self.media_type, data=data))


def _check_file(file: UploadFile | str, max_document_bytes: int) -> _ReceivedFile:
    if isinstance(file, str) or not file.filename:
        raise InvalidRequestError("a file of the multipart body has no file name", param=FILES_FIELD)
    name, num_bytes = check_name(file.filename, param=FILES_FIELD), file.size
    assert num_bytes is not None, "whoever reads a form counts its bytes"
    if num_bytes > max_document_bytes:
        raise _too_large(name, num_bytes, max_document_bytes)
    declared = (file.content_type or "").strip()
    media_type = None if declared in UNNAMED_TYPES else declared
    require_media_type(media_type, name=name)
    return _ReceivedFile(file, name, media_type, num_bytes)


async def _read_json(request: Request, max_document_bytes: int) -> Upload:
    try:
        document = DocumentCreate.model_validate(await request.json())
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error
    except ValidationError as error:
        raise validation_error(error) from error
    data = document.text.encode()
    if document.id is not None:
        check_name(document.id, param="id")
    name = check_name(document.name or document.id or hashlib.sha256(data).hexdigest(), param="name")
    if len(data) > max_document_bytes:
        raise _too_large(name, len(data), max_document_bytes)
    return _not_empty(
        Upload(
            id=document.id or name,
            name=name,
            media_type=document.media_type,
            data=data,
            metadata=document.metadata,
        )
    )


def _not_empty(upload: Upload) -> Upload:
    """Return an upload that holds something; what a parser makes of it is its job's to say."""
    if not upload.data.strip():
        raise InvalidRequestError(f"document {upload.name!r} has no text", param="text")
    return upload


def _too_large(name: str, num_bytes: int, bound: int) -> DocumentTooLargeError:
    return DocumentTooLargeError(f"document {name[:80]!r} has {num_bytes} bytes; the service takes at most {bound}")
