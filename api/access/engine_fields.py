"""What of a client's request reaches vLLM, kept within its tenant."""

import hashlib
from collections.abc import Mapping
from typing import Any

from kvblend.core.errors import InvalidRequestError

__all__ = ["engine_fields"]


def engine_fields(fields: Mapping[str, Any], *, salt: str | None) -> dict[str, Any]:
    """The fields, salted so that vLLM's prefix cache has nothing of another tenant's for them.

    A client's own `cache_salt` still sets its requests apart, and its `priority` can put them behind others, never
    before. Raises InvalidRequestError where either is of another type.
    """
    own, priority = fields.get("cache_salt"), fields.get("priority")
    if not isinstance(own, str | None):
        raise InvalidRequestError(f"cache_salt is a text, not {own!r:.80}", param="cache_salt")
    if isinstance(priority, bool) or not isinstance(priority, int | None):
        raise InvalidRequestError(f"priority is an integer, not {priority!r:.80}", param="priority")
    kept = dict(fields)
    if salt is not None:
        kept["cache_salt"] = salt if own is None else hashlib.sha256(f"{salt}{own}".encode()).hexdigest()
    if priority is not None and priority < 0:
        kept["priority"] = 0
    return kept
