"""The controller's long-lived services: the wake-up listener and one scheduler per backend.

A scheduler sleeps until it is woken; the slow timer is only the safety net for a wake-up that got lost.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Sequence
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

import structlog
from opentelemetry.trace import NoOpTracer, Tracer

from common.clock import Clock
from controller.core.errors import Unavailable
from controller.engine.facade import Engine
from controller.engine.scheduling import Pass
from controller.store.backends import SCHEDULE_CHANNEL
from controller.store.listen import Wakeups

T = TypeVar("T")

log = structlog.get_logger(__name__)

_FAILED_SECONDS = 1.0
"""Pause after a pass that could not be made, because the database is away or we have a bug."""

_FIRST_PRUNING = 3600.0
"""Seconds within which a controller prunes for the first time; at random, so that several do not begin together."""
_DAY = 86_400.0


class Scheduler:
    """Runs scheduling passes of one backend whenever something may have changed.

    Wake-ups that come during a pass are folded into one further pass.
    """

    def __init__(
        self,
        engine: Engine,
        wakeups: Wakeups,
        backend: str,
        *,
        clock: Clock,
        safety_seconds: float,
        lease_seconds: float,
        tracer: Tracer | None = None,
    ) -> None:
        self._engine = engine
        self._tracer = tracer or NoOpTracer()
        self._wakeups = wakeups
        self._backend = backend
        self._clock = clock
        self._safety_seconds = safety_seconds
        self._lease_seconds = lease_seconds
        self._steady_since = self._turned_at = clock.monotonic()
        self._looked_at = -math.inf

    async def run(self) -> None:
        """Schedule until cancelled. A pass that fails is logged and tried again; it never ends the loop."""
        with self._wakeups.waiter(SCHEDULE_CHANNEL, self._backend) as woken:
            while True:
                await self._take_over()
                woken.clear()
                began = self._clock.now()
                done = await self._safely(self._engine.schedule(self._backend))
                if done is not None:
                    self._tell(began, done)
                    await self._sleep(woken, done.next_at)

    def _tell(self, began: datetime, done: Pass) -> None:
        """A span of a pass, if it did anything: most find nothing to do."""
        if done.moved:
            said: dict[str, str | int] = {"loop": "scheduler", "rap.backend": self._backend, "job_count": done.moved}
            span = self._tracer.start_span("LOOP", attributes=said, start_time=_ns(began))
            span.end(_ns(self._clock.now()))

    async def _take_over(self) -> None:
        """Look for silent agents now and then: nobody tells when one falls silent.

        Only after a whole lease in which this process ran and reached the database. During an outage nobody could
        renew, and the first agent back must not make the others look dead.
        """
        now = self._clock.monotonic()
        if now - self._turned_at > max(self._lease_seconds, 2 * self._safety_seconds):
            self._steady_since = now  # this process itself was stopped
        self._turned_at = now
        if now - self._steady_since >= self._lease_seconds and now - self._looked_at >= self._safety_seconds:
            self._looked_at = now
            await self._safely(self._engine.take_over(self._backend))

    async def _safely(self, work: Awaitable[T]) -> T | None:
        """The result of `work`; None if it failed, after a pause. It will be tried again, for ever."""
        try:
            return await work
        except Unavailable as error:
            log.warning("schedule_unavailable", backend=self._backend, error=str(error))
        except Exception:
            log.exception("schedule_failed", backend=self._backend)
        await self._clock.sleep(_FAILED_SECONDS)
        self._steady_since = self._clock.monotonic()
        return None

    async def _sleep(self, woken: asyncio.Event, next_at: datetime | None) -> None:
        """Until woken, until `next_at`, or the safety timer; its jitter keeps controllers from waking together."""
        seconds = self._safety_seconds * random.uniform(0.8, 1.2)  # noqa: S311  no secret
        if next_at is not None:
            seconds = min(seconds, max(0.0, (next_at - self._clock.now()).total_seconds()))
        try:
            async with asyncio.timeout(seconds):
                await woken.wait()
        except TimeoutError:
            pass


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000


class Pruner:
    """Forgets what finished longer ago than the setting allows, once a day.

    Every controller on a database does so: what one has removed, the next does not find.
    """

    def __init__(self, engine: Engine, backends: Sequence[str], *, clock: Clock, older_than: timedelta) -> None:
        self._engine = engine
        self._backends = backends
        self._clock = clock
        self._older_than = older_than

    async def run(self) -> None:
        """Prune until cancelled; the first time within an hour. What fails is logged and tried the next day."""
        await self._clock.sleep(_FIRST_PRUNING * random.random())  # noqa: S311  no secret
        while True:
            for backend in self._backends:
                await self._prune(backend)
            await self._clock.sleep(_DAY * random.uniform(0.9, 1.1))  # noqa: S311  no secret

    async def _prune(self, backend: str) -> None:
        try:
            await self._engine.prune_by_setting(backend, self._older_than)
        except Unavailable as error:
            log.warning("prune_unavailable", backend=backend, error=str(error))
        except Exception:
            log.exception("prune_failed", backend=backend)


class Loop(Protocol):
    """What runs until it is cancelled."""

    async def run(self) -> None:
        """Never returns."""
        ...


class Services:
    """All loops of one controller process, started and stopped together."""

    def __init__(self, loops: Sequence[Loop]) -> None:
        self._runs = [loop.run for loop in loops]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; returns at once."""
        self._tasks = [asyncio.create_task(run(), name=run.__qualname__) for run in self._runs]

    async def stop(self) -> None:
        """End all loops; a pass under way is rolled back, and another controller's or the next start's makes it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
