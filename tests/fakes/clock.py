"""A clock that stands still until a test cranks it."""

import asyncio
import heapq
import itertools
from datetime import datetime, timedelta

from tests.factories import NOW


class ManualClock:
    """Implements common.clock.Clock; `advance` wakes the sleepers whose time has come, in their order."""

    def __init__(self, start: datetime = NOW) -> None:
        self._start = start
        self._elapsed = 0.0
        self._numbers = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self.asleep = asyncio.Event()
        """Set as soon as somebody sleeps."""

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._numbers), woken))
        self.asleep.set()
        await woken.wait()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self._elapsed += seconds
        while self._sleepers and self._sleepers[0][0] <= self._elapsed:
            heapq.heappop(self._sleepers)[2].set()
