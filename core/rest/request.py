"""What all requests are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = [
    "CollectionPath",
    "Name",
    "Request",
    "TopK",
]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
CollectionPath = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9][a-z0-9_.-]{0,31}/)?[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
]
TopK = Annotated[int, Field(ge=1, le=64)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")
