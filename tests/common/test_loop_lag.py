"""The event loop's lateness: what a look took longer than it should have."""

import asyncio

from common.loop_lag import INTERVAL, LoopLag
from tests.fakes.clock import ManualClock


async def test_a_look_tells_by_how_much_it_came_late() -> None:
    clock = ManualClock()
    told: asyncio.Queue[float] = asyncio.Queue()
    running = asyncio.create_task(LoopLag(clock, told.put_nowait).run())
    for lateness in (0.0, 0.25, 3.0):
        await clock.asleep.wait()
        clock.asleep.clear()
        clock.advance(INTERVAL + lateness)
        assert await told.get() == lateness
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
