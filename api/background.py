"""Tasks that run beside the requests, as long as the service does."""

import asyncio
import contextlib
from typing import Any

__all__ = ["end_task"]


async def end_task(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task, if there is one, and wait until it has ended. Raises what ended it before that."""
    if task is None:
        return
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
