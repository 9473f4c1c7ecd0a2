"""Requests that vLLM schedules behind answers."""

import logging
from collections.abc import Mapping
from typing import Any

from kvblend.api.engine.replicas import Replica
from kvblend.core.errors import RefusedByEngineError

__all__ = ["BULK", "MISSED", "post_behind_answers"]

logger = logging.getLogger(__name__)

MISSED = 1
"""Of passages that an answer has missed. Answers themselves have 0, which vLLM serves first."""
BULK = 2
"""Of ingests, and of what is encoded while nothing else is to do."""


async def post_behind_answers(replica: Replica, path: str, body: Mapping[str, Any], *, priority: int) -> dict[str, Any]:
    """Send a request with a priority; to a vLLM without `--scheduling-policy priority`, which refuses any, without one.

    Raises what `EngineClient` raises.
    """
    if replica.takes_priority:
        try:
            return await replica.engine.post(path, {**body, "priority": priority})
        except RefusedByEngineError as error:
            if "priority" not in error.message.lower():
                raise
            replica.takes_priority = False
            logger.warning(
                "the vLLM server at %s schedules without priorities: encodes share it with answers as equals; start it "
                "with --scheduling-policy priority",
                replica.engine.url,
            )
    return await replica.engine.post(path, body)
