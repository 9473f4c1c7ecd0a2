"""How requests follow each other: so many clients that wait for their answers, or arrivals that wait for nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

__all__ = ["ClosedLoop", "OpenLoop", "Traffic", "poisson_arrivals"]

T = TypeVar("T")


class Traffic(Protocol):
    """Sends requests in their order; `concurrency` or `rate` is None."""

    @property
    def concurrency(self) -> int | None: ...

    @property
    def rate(self) -> float | None: ...

    async def run(self, send: Callable[[T], Awaitable[None]], requests: Sequence[T]) -> None:
        """Return when all are answered."""


@dataclass(frozen=True)
class ClosedLoop:
    """`concurrency` clients, each of which sends the next request as soon as it has its answer."""

    concurrency: int
    rate: None = None

    async def run(self, send: Callable[[T], Awaitable[None]], requests: Sequence[T]) -> None:
        waiting = iter(requests)

        async def client() -> None:
            for request in waiting:
                await send(request)

        await asyncio.gather(*(client() for _ in range(self.concurrency)))


@dataclass(frozen=True)
class OpenLoop:
    """`rate` requests a second on average, by a Poisson process that the seed fixes."""

    rate: float
    seed: int = 0
    concurrency: None = None

    async def run(self, send: Callable[[T], Awaitable[None]], requests: Sequence[T]) -> None:
        began = asyncio.get_running_loop().time()

        async def arrive(request: T, arrival_s: float) -> None:
            await asyncio.sleep(began + arrival_s - asyncio.get_running_loop().time())
            await send(request)

        arrivals = poisson_arrivals(self.rate, len(requests), seed=self.seed)
        await asyncio.gather(*map(arrive, requests, arrivals))


def poisson_arrivals(rate: float, num_arrivals: int, *, seed: int) -> list[float]:
    """Seconds from the first arrival on; the gaps are exponential, with mean 1 / `rate`."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(0, num_arrivals - 1))
    return [0.0, *np.cumsum(gaps).tolist()][:num_arrivals]
