import asyncio

from wasmlet.pods.watch import Broadcast


async def test_begins_with_everything_and_goes_on_with_changes() -> None:
    broadcast: Broadcast[str, int] = Broadcast()
    with broadcast.watch({"a": 1, "b": 2}) as watch:
        changes = aiter(watch)
        assert await anext(changes) == [1, 2]
        broadcast.publish("a", 3)
        assert await anext(changes) == [3]


async def test_begins_even_with_nothing() -> None:
    broadcast: Broadcast[str, int] = Broadcast()
    with broadcast.watch({}) as watch:
        assert await anext(aiter(watch)) == []


async def test_a_slow_reader_gets_the_newest_of_each_and_holds_no_more() -> None:
    broadcast: Broadcast[str, int] = Broadcast()
    with broadcast.watch({}) as watch:
        changes = aiter(watch)
        await anext(changes)
        for value in range(10_000):
            broadcast.publish("a", value)
            broadcast.publish("b", -value)
        assert await anext(changes) == [9_999, -9_999]


async def test_nothing_between_listing_and_watching_is_lost() -> None:
    broadcast: Broadcast[str, int] = Broadcast()
    with broadcast.watch({"a": 1}) as watch:
        broadcast.publish("a", 2)
        changes = aiter(watch)
        assert await anext(changes) == [1]
        async with asyncio.timeout(1):
            assert await anext(changes) == [2]


def test_a_watch_that_is_over_gets_nothing_more() -> None:
    broadcast: Broadcast[str, int] = Broadcast()
    with broadcast.watch({}) as watch:
        pass
    broadcast.publish("a", 1)
    assert watch._pending == {}
