"""How things stand at the moment of a scrape: the database's numbers, the pool, who waits, what became of spans.

The database is asked at most every two seconds however many scrape, with a bound on the time; while it does not answer,
its numbers are missing, one series says so, and the rest is there.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
from attrs import field, frozen

from common.clock import Clock
from controller.engine.gauging import Gauges
from controller.store.db import PoolState
from controller.store.listen import Wakeups
from controller.telemetry.counts import TelemetryCounts

log = structlog.get_logger(__name__)

FRESH_SECONDS: Final = 2.0
"""For so long the database's numbers are good enough for the next scrape."""
PATIENCE: Final = 2.0
"""Seconds that a scrape waits for them."""


@frozen(kw_only=True)
class Moment:
    """All of it, as values that nobody changes any more."""

    gauges: Gauges | None
    """None: the database did not answer in time."""
    pool: PoolState
    waiting: Mapping[str, int]
    """Backend -> open long-polls."""
    heard: Mapping[str, int]
    woken: Mapping[str, int]
    """Channel -> notifications that came, waiters that were woken."""
    listening: bool
    exported: int
    dropped: int


@frozen(kw_only=True)
class Sources:
    """Where a moment is taken from."""

    gauge: Callable[[], Awaitable[Gauges]]
    pool: Callable[[], PoolState]
    wakeups: Wakeups
    tasks_channel: str
    listening: Callable[[], bool]
    counts: TelemetryCounts = field(factory=TelemetryCounts)


class Moments:
    """Takes moments, and keeps the database's numbers for a moment."""

    def __init__(self, sources: Sources, clock: Clock) -> None:
        self._sources = sources
        self._clock = clock
        self._one_look = asyncio.Lock()
        self._gauges: Gauges | None = None
        self._looked_at = -math.inf

    async def take(self) -> Moment:
        """How things stand now. Never raises for a database that is away."""
        gauges = await self._gauge()
        sources = self._sources
        return Moment(
            gauges=gauges,
            pool=sources.pool(),
            waiting=sources.wakeups.waiting_for(sources.tasks_channel),
            heard=dict(sources.wakeups.heard),
            woken=dict(sources.wakeups.woken),
            listening=sources.listening(),
            exported=sources.counts.exported,
            dropped=sources.counts.dropped,
        )

    async def _gauge(self) -> Gauges | None:
        async with self._one_look:
            if self._clock.monotonic() - self._looked_at < FRESH_SECONDS:
                return self._gauges
            self._gauges = await self._look()
            self._looked_at = self._clock.monotonic()
            return self._gauges

    async def _look(self) -> Gauges | None:
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._sources.gauge()
        except Exception as error:
            # Whatever it is, the other numbers are wanted now more than ever.
            log.warning("gauges_missing", reason=f"{type(error).__name__}: {error}")
            return None
