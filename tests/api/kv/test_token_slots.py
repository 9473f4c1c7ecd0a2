"""Who is let in, and when."""

import asyncio

from kvblend.api.kv.token_slots import TokenSlots, TokenTurn


async def test_no_more_than_fit_and_each_in_its_turn() -> None:
    slots, inside, let_in, most = TokenSlots(10), 0, list[int](), 0

    async def work(number: int, num_tokens: int) -> None:
        nonlocal inside, most
        async with TokenTurn(num_tokens, slots).taken():
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
        async with TokenTurn(10, slots).taken():
            entered.set()
            await asyncio.sleep(60)

    async def want() -> bool:
        async with TokenTurn(5, slots).taken():
            return True

    holder = asyncio.create_task(hold())
    await entered.wait()
    first, second = asyncio.create_task(want()), asyncio.create_task(want())
    await asyncio.sleep(0.01)
    first.cancel()
    holder.cancel()
    assert await asyncio.wait_for(second, 60)


async def test_who_waits_in_two_is_let_in_once_by_whichever_has_room_first() -> None:
    """And holds up nobody in the other; no more does who gives up meanwhile."""
    slow, quick, let_in, turns = TokenSlots(10), TokenSlots(10), list[str](), dict[str, TokenTurn]()
    names = ("first", "both", "gone", "last", "quick")
    leave = {name: asyncio.Event() for name in names}

    async def work(name: str) -> None:
        turns[name] = TokenTurn(8, quick if name == "quick" else slow)
        async with turns[name].taken():
            let_in.append(name)
            await leave[name].wait()

    async def then(*expected: str) -> None:
        await asyncio.sleep(0.01)
        assert let_in == list(expected)

    tasks = {name: asyncio.create_task(work(name)) for name in names}
    await then("first", "quick")
    turns["both"].wait_in(quick)
    turns["gone"].wait_in(quick)
    leave["quick"].set()
    await then("first", "quick", "both")
    tasks["gone"].cancel()
    leave["first"].set()
    await then("first", "quick", "both", "last")
    for name in ("both", "last"):
        leave[name].set()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    for slots in (slow, quick):
        assert not TokenTurn(10, slots).is_waiting, "all has been given back"
