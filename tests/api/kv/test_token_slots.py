"""Who is let in, and when."""

import asyncio

from kvblend.api.kv.token_slots import TokenSlots


async def test_no_more_than_fit_and_each_in_its_turn() -> None:
    slots, inside, let_in, most = TokenSlots(10), 0, list[int](), 0

    async def work(number: int, num_tokens: int) -> None:
        nonlocal inside, most
        async with slots.taken(num_tokens):
            let_in.append(number)
            inside += num_tokens
            most = max(most, inside if num_tokens <= 10 else 0)
            assert num_tokens <= 10 or inside == num_tokens, "one that is too large goes alone"
            await asyncio.sleep(0.001)
            inside -= num_tokens

    sizes = [4, 6, 1, 25, 3, 3, 3, 10, 2]
    await asyncio.gather(*(work(number, size) for number, size in enumerate(sizes)))
    assert let_in == list(range(len(sizes))) and most == 10


async def test_who_gives_up_holds_up_nobody() -> None:
    slots, entered = TokenSlots(10), asyncio.Event()

    async def hold() -> None:
        async with slots.taken(10):
            entered.set()
            await asyncio.sleep(60)

    async def want() -> bool:
        async with slots.taken(5):
            return True

    holder = asyncio.create_task(hold())
    await entered.wait()
    first, second = asyncio.create_task(want()), asyncio.create_task(want())
    await asyncio.sleep(0.01)
    first.cancel()
    holder.cancel()
    assert await asyncio.wait_for(second, 60)
