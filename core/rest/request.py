"""What all requests are made of."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

__all__ = [
    "CollectionPath",
    "FewFields",
    "Name",
    "Request",
    "TopK",
]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
CollectionPath = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9][a-z0-9_.-]{0,31}/)?[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
]
TopK = Annotated[int, Field(ge=1, le=64)]
MAX_FIELDS = 1000


def _check_fields(value: Any) -> Any:
    """Refuse an object at once that would otherwise be refused field by field."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise ValueError(f"an object has at most {MAX_FIELDS} fields; this has {len(value)}")
    return value


FewFields = BeforeValidator(_check_fields)
"""Marks an object of whatever fields: of at most `MAX_FIELDS`."""


class Request(BaseModel, defer_build=True):
    model_config = ConfigDict(extra="forbid")

    _check_few = model_validator(mode="before")(_check_fields)
