"""Several requests under way at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

__all__ = ["AT_ONCE", "few_at_once"]

AT_ONCE = 4
"""Answers: a token of each costs an engine little more than a token of one."""
Result = TypeVar("Result")


async def few_at_once(
    works: Sequence[Callable[[], Awaitable[Result]]], ended: Callable[[], None] = lambda: None
) -> list[Result]:
    """Their results, in order; `ended` is called behind each. The first error ends the others, and is raised."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(work: Callable[[], Awaitable[Result]]) -> Result:
        async with places:
            result = await work()
        ended()
        return result

    tasks = [asyncio.create_task(one(work)) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
