"""Conditions on documents' metadata."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from kvblend.core.rest.request import Request

__all__ = ["MetadataCondition", "MetadataFilter"]

MAX_CONDITIONS = 256
MAX_DEPTH = 16

WholeNumber = Annotated[StrictInt, Field(ge=-(1 << 63), le=(1 << 63) - 1)]
Fraction = Annotated[StrictFloat, Field(allow_inf_nan=False)]
Text = Annotated[StrictStr, Field(max_length=4096)]
Ordered = WholeNumber | Fraction | Text
Scalar = StrictBool | Ordered


class MetadataCondition(Request):
    """What one field must be; all that is named holds. A number is in a range of numbers alone, a text (a date, say, as
    2026-01-31) in a range of texts alone, by code point."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    in_: Annotated[list[Scalar] | None, Field(alias="in", min_length=1, max_length=1000)] = None
    """One of these."""
    gt: Ordered | None = None
    """Greater than this."""
    gte: Ordered | None = None
    """This or greater."""
    lt: Ordered | None = None
    """Less than this."""
    lte: Ordered | None = None
    """This or less."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.model_fields_set or None in [getattr(self, name) for name in self.model_fields_set]:
            raise ValueError("a condition names a value for at least one of in, gt, gte, lt and lte")
        return self


class MetadataFilter(Request):
    """Which documents' passages to retrieve: `{"lang": "en", "year": {"gte": 2020}}`. All that is named holds.

    A field is equal to a value, or as a condition says; a document without the field is not. `and` and `or` take
    filters, `not` one: a field of metadata with such a name cannot be asked for.
    """

    model_config = ConfigDict(extra="allow", populate_by_name=True)
    __pydantic_extra__: dict[str, Scalar | MetadataCondition]

    and_: Annotated[list["MetadataFilter"] | None, Field(alias="and", min_length=1, max_length=MAX_CONDITIONS)] = None
    or_: Annotated[list["MetadataFilter"] | None, Field(alias="or", min_length=1, max_length=MAX_CONDITIONS)] = None
    not_: Annotated["MetadataFilter | None", Field(alias="not")] = None

    @property
    def fields(self) -> dict[str, Scalar | MetadataCondition]:
        """What is asked of each field."""
        return self.__pydantic_extra__

    @model_validator(mode="after")
    def _check(self) -> Self:
        number, depth = self._size()
        if number > MAX_CONDITIONS or depth > MAX_DEPTH:
            raise ValueError(
                f"a filter has at most {MAX_CONDITIONS} conditions, {MAX_DEPTH} deep; this has {number}, {depth} deep"
            )
        return self

    def _size(self) -> tuple[int, int]:
        parts = [*(self.and_ or []), *(self.or_ or []), *([self.not_] if self.not_ else [])]
        sizes = [part._size() for part in parts]
        return len(self.fields) + sum(size[0] for size in sizes), 1 + max((size[1] for size in sizes), default=0)
