"""What a request chooses among, by name. The command's options have them without the schemas."""

from typing import Literal

__all__ = ["OrderName", "Reuse", "SearchMode", "SelectorName"]

SelectorName = Literal["probe", "none", "all"]
Reuse = Literal["blend", "prefix_cache", "none"]
OrderName = Literal["fit", "rank", "document"]
SearchMode = Literal["hybrid", "vector", "keyword"]
