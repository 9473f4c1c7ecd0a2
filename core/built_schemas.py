"""Schemas that are built at their first use (`defer_build`), built now.

A program that imports the SDK uses few of them, and building all takes longer than the rest of the import.
"""

from pydantic import BaseModel

__all__ = ["build_schemas"]


def build_schemas() -> None:
    """Build every schema of kvblend's that was imported: a service does so before its first request."""
    left: list[type[BaseModel]] = [BaseModel]
    while left:
        for schema in left.pop().__subclasses__():
            left.append(schema)
            if schema.__module__.startswith("kvblend."):
                schema.model_rebuild()
