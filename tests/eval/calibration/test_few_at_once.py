import asyncio
from functools import partial

import pytest

from kvblend.eval.calibration.few_at_once import AT_ONCE, few_at_once


class Works:
    def __init__(self) -> None:
        self.num_running = self.most = self.num_ended = 0

    async def number(self, number: int) -> int:
        self.num_running += 1
        self.most = max(self.most, self.num_running)
        try:
            await asyncio.sleep(0.001 * (number % 3))
            if number == 13:
                raise ValueError("unlucky")
            return number
        finally:
            self.num_running -= 1

    def end(self) -> None:
        self.num_ended += 1


async def test_all_are_done_in_their_order_and_a_few_at_once() -> None:
    works = Works()
    numbers = await few_at_once([partial(works.number, number) for number in range(13)], works.end)
    assert numbers == list(range(13))
    assert (works.most, works.num_ended, works.num_running) == (AT_ONCE, 13, 0)


async def test_the_first_error_ends_the_others() -> None:
    works = Works()
    with pytest.raises(ValueError, match="unlucky"):
        await few_at_once([partial(works.number, number) for number in range(10, 1000)], works.end)
    assert works.num_running == 0 and works.num_ended < 20
