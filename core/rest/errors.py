"""OpenAI's error shape."""

from pydantic import BaseModel

__all__ = [
    "ErrorBody",
    "ErrorResponse",
]


class ErrorBody(BaseModel, defer_build=True):
    message: str
    """A sentence that names the value and what it may be."""
    type: str
    """OpenAI's word for the kind of error."""
    param: str | None = None
    """The field that is wrong, where one is."""
    code: str | None = None
    """What a program tells errors apart by."""


class ErrorResponse(BaseModel, defer_build=True):
    """OpenAI's error shape."""

    error: ErrorBody
    """What went wrong."""
