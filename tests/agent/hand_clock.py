"""A clock that only moves when a test cranks it."""

import asyncio
import heapq
from datetime import UTC, datetime, timedelta


class HandClock:
    """Starts at a fixed moment; `advance` wakes whoever slept long enough."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self._news = asyncio.Event()

    def now(self) -> datetime:
        return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=self.elapsed)

    def monotonic(self) -> float:
        return self.elapsed

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.elapsed + seconds, self._count, future))
        self._news.set()
        await future

    def advance(self, seconds: float) -> None:
        """Move time on."""
        self.elapsed += seconds
        while self._sleepers and self._sleepers[0][0] <= self.elapsed:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)

    async def until_sleeper(self, seconds: float) -> None:
        """Return when somebody sleeps for at most `seconds` from now."""
        while not any(until <= self.elapsed + seconds and not f.done() for until, _, f in self._sleepers):
            self._news.clear()
            await self._news.wait()

    async def crank(self, longest: float) -> None:
        """For ever: wake whoever sleeps for at most `longest` seconds."""
        while True:
            await self.until_sleeper(longest)
            self.advance(longest)
            await asyncio.sleep(0)
