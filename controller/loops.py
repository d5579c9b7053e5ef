"""The controller's long-lived services: the wake-up listener and one scheduler per backend.

A scheduler sleeps until it is woken; the slow timer is only the safety net for a wake-up that got lost.
"""

import asyncio
import random

import structlog

from common.clock import Clock
from controller.core.errors import Unavailable
from controller.engine.facade import Engine
from controller.store.backends import SCHEDULE_CHANNEL
from controller.store.listen import Listener, Wakeups

log = structlog.get_logger(__name__)

_UNAVAILABLE_SECONDS = 1.0
"""Pause after a pass that the database's absence stopped; reconnecting wakes earlier."""


class Scheduler:
    """Runs scheduling passes of one backend whenever something may have changed.

    Wake-ups that come during a pass are folded into one further pass.
    """

    def __init__(self, engine: Engine, wakeups: Wakeups, backend: str, *, clock: Clock, safety_seconds: float) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._backend = backend
        self._clock = clock
        self._safety_seconds = safety_seconds

    async def run(self) -> None:
        """Schedule until cancelled. A pass that fails is logged and tried again; it never ends the loop."""
        with self._wakeups.waiter(SCHEDULE_CHANNEL, self._backend) as woken:
            while True:
                woken.clear()
                await self._pass()
                await self._sleep(woken)

    async def _pass(self) -> None:
        began = self._clock.monotonic()
        try:
            moved = await self._engine.schedule(self._backend)
        except Unavailable as error:
            log.warning("schedule_unavailable", backend=self._backend, error=str(error))
            await self._clock.sleep(_UNAVAILABLE_SECONDS)
        except Exception:
            log.exception("schedule_failed", backend=self._backend)
            await self._clock.sleep(_UNAVAILABLE_SECONDS)
        else:
            if moved:
                took = round((self._clock.monotonic() - began) * 1000, 2)
                log.debug("scheduled", backend=self._backend, moved=moved, duration_ms=took)

    async def _sleep(self, woken: asyncio.Event) -> None:
        """Until woken or the safety timer; its jitter keeps several controllers from waking together."""
        try:
            async with asyncio.timeout(self._safety_seconds * random.uniform(0.8, 1.2)):  # noqa: S311  no secret
                await woken.wait()
        except TimeoutError:
            pass


class Services:
    """All loops of one controller process, started and stopped together."""

    def __init__(self, listener: Listener, schedulers: list[Scheduler]) -> None:
        self._runs = [listener.run, *(scheduler.run for scheduler in schedulers)]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; returns at once."""
        self._tasks = [asyncio.create_task(run(), name=run.__qualname__) for run in self._runs]

    async def stop(self) -> None:
        """End all loops; a pass under way is rolled back, and another controller's or the next start's makes it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
