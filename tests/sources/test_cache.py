"""Remembering look-ups: bounded, ageing, shared."""

import asyncio

import pytest

from controller.sources.cache import Cache
from tests.fakes.clock import ManualClock


class Source:
    """Answers with the number of times it was asked; waits if told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.is_asked = asyncio.Event()

    async def __call__(self) -> int:
        self.asked += 1
        self.is_asked.set()
        await self.may_answer.wait()
        return self.asked


async def test_values_are_remembered_until_they_are_the_oldest() -> None:
    cache, source = Cache[str, int](2), Source()
    assert [await cache.get(key, source) for key in "ababcab"] == [1, 2, 1, 2, 3, 4, 5]


async def test_values_age() -> None:
    clock, source = ManualClock(), Source()
    cache = Cache[str, int](2, seconds=10, clock=clock)
    assert await cache.get("a", source) == 1
    clock.advance(9)
    assert await cache.get("a", source) == 1
    clock.advance(1)
    assert await cache.get("a", source) == 2


async def test_failures_are_not_remembered() -> None:
    cache, source = Cache[str, int](2), Source()

    async def fail() -> int:
        raise LookupError("no")

    answers = await asyncio.gather(*(cache.get("a", fail) for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [LookupError] * 3
    assert await cache.get("a", source) == 1


async def test_one_look_up_serves_all_and_outlives_whoever_gives_up() -> None:
    cache, source = Cache[str, int](2), Source()
    source.may_answer.clear()
    first, second = (asyncio.create_task(cache.get("a", source)) for _ in range(2))
    await source.is_asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    source.may_answer.set()
    assert await second == 1
    assert source.asked == 1


async def test_closing_gives_up_what_is_under_way() -> None:
    cache, source = Cache[str, int](2), Source()
    source.may_answer.clear()
    waiting = asyncio.create_task(cache.get("a", source))
    await source.is_asked.wait()
    await cache.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
