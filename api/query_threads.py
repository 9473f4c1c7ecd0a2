"""Threads of requests that somebody waits for."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

__all__ = ["QueryThreads"]

MAX_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""As many as asyncio's own pool has."""

Params = ParamSpec("Params")
Result = TypeVar("Result")


class QueryThreads:
    """Where requests embed, search, tokenize and render, and nothing else does: what a slow disk or a remote tier holds
    up is in asyncio's own pool, and holds up no search."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="kvblend queries")

    async def run(
        self, function: Callable[Params, Result], /, *arguments: Params.args, **named: Params.kwargs
    ) -> Result:
        """As `asyncio.to_thread`, in one of these threads."""
        call = partial(copy_context().run, function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """End the threads, behind what they are at."""
        self._threads.shutdown(cancel_futures=True)
