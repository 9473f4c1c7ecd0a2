"""One half of a question set is for trying, the other for reporting."""

from typing import Literal

__all__ = ["Half"]

Half = Literal["first", "second", "all"]
