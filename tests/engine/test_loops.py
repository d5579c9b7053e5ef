"""The scheduler's sleep: woken by a hint, by time that the last pass named, or by the safety timer."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from attrs import define, field
from structlog.testing import capture_logs

from common.clock import Clock, SystemClock
from controller.core.errors import Unavailable
from controller.engine.scheduling import Pass
from controller.loops import Scheduler
from controller.store.backends import SCHEDULE_CHANNEL
from tests.fakes.clock import ManualClock
from tests.fakes.wakeups import ObservedWakeups

NEVER = 3600.0
LEASE = 60.0


@define
class PassesOnly:
    """An engine that does nothing but count passes; each takes its answer from `answers`, the last for ever."""

    answers: list[Any]
    passes: int = 0
    enough: int = 2
    done: asyncio.Event = field(factory=asyncio.Event)
    taken_over: list[int] = field(factory=list)
    """After how many passes somebody looked for silent agents."""

    async def take_over(self, backend: str) -> int:
        del backend
        self.taken_over.append(self.passes)
        return 0

    async def schedule(self, backend: str) -> Pass:
        del backend
        answer = self.answers[min(self.passes, len(self.answers) - 1)]
        self.passes += 1
        if self.passes >= self.enough:
            self.done.set()
        if isinstance(answer, Exception):
            raise answer
        return Pass(moved=0, next_at=answer)


@contextmanager
def scheduling(
    engine: PassesOnly, wakeups: ObservedWakeups, safety_seconds: float = NEVER, clock: Clock | None = None
) -> Iterator[None]:
    scheduler = Scheduler(
        engine,  # type: ignore[arg-type]  # a stand-in for the facade
        wakeups,
        "test",
        clock=clock or SystemClock(),
        safety_seconds=safety_seconds,
        lease_seconds=LEASE,
    )
    task = asyncio.create_task(scheduler.run())
    try:
        yield
    finally:
        task.cancel()


async def finished(engine: PassesOnly) -> None:
    async with asyncio.timeout(10):
        await engine.done.wait()


async def test_a_hint_wakes_it() -> None:
    engine, wakeups = PassesOnly([None]), ObservedWakeups()
    with scheduling(engine, wakeups):
        await wakeups.asleep.wait()
        wakeups.wake(SCHEDULE_CHANNEL, "other")
        wakeups.wake(SCHEDULE_CHANNEL, "test")
        await finished(engine)


@pytest.mark.parametrize("rest", [timedelta(seconds=-5), timedelta(milliseconds=20)])
async def test_the_end_of_a_rest_wakes_it(rest: timedelta) -> None:
    soon: datetime = SystemClock().now() + rest
    engine = PassesOnly([soon, None])
    with scheduling(engine, ObservedWakeups()):
        await finished(engine)


async def test_the_safety_timer_wakes_it() -> None:
    engine = PassesOnly([None])
    with scheduling(engine, ObservedWakeups(), safety_seconds=0.01):
        await finished(engine)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.mark.parametrize("fault", [Unavailable("away"), RuntimeError("a bug")])
async def test_a_failed_pass_is_made_again_after_a_pause_without_another_hint(fault: Exception) -> None:
    engine, clock = PassesOnly([fault, None]), ManualClock()
    with scheduling(engine, ObservedWakeups(), clock=clock):
        async with asyncio.timeout(10):
            await clock.asleep.wait()
        assert engine.passes == 1
        clock.advance(1)
        await finished(engine)


async def test_silent_agents_are_looked_for_only_after_a_lease_without_an_outage() -> None:
    """After an outage nobody could renew: the first agent back must not make the others look dead."""
    engine, clock = PassesOnly([None, None, Unavailable("away"), None], enough=99), ManualClock()
    wakeups = ObservedWakeups()

    async def another_pass() -> None:
        await wakeups.asleep.wait()
        wakeups.asleep.clear()
        wakeups.wake(SCHEDULE_CHANNEL, "test")

    with scheduling(engine, wakeups, safety_seconds=10, clock=clock):
        async with asyncio.timeout(10):
            clock.advance(LEASE - 1)
            await another_pass()
            assert engine.taken_over == []
            await wakeups.asleep.wait()
            clock.advance(1)
            await another_pass()  # looks for silent agents, and then finds the database away
            clock.asleep.clear()
            await clock.asleep.wait()
            assert engine.taken_over == [2]
            clock.advance(LEASE - 1)
            await another_pass()
            await wakeups.asleep.wait()
            assert engine.taken_over == [2]
            clock.advance(LEASE)
            await another_pass()
            await wakeups.asleep.wait()
            assert engine.taken_over == [2, 5]
