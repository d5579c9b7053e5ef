"""Wake-ups: one connection LISTENs, waiters sleep until their backend is named.

A wake-up is a hint; the rows are the truth. So whoever waits registers first, looks, and only then sleeps, and after
a lost connection everybody is woken once, because notifications may have been missed.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import asyncpg
import structlog

from common.clock import Clock

log = structlog.get_logger(__name__)

_RETRY_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5)


class Wakeups:
    """Who waits for what: (channel, backend) -> events to set."""

    def __init__(self) -> None:
        self._waiters: defaultdict[tuple[str, str], set[asyncio.Event]] = defaultdict(set)
        self.heard: Counter[str] = Counter()
        """Notifications that came, by channel."""
        self.woken: Counter[str] = Counter()
        """Waiters that were woken, by channel."""

    @contextmanager
    def waiter(self, channel: str, backend: str) -> Iterator[asyncio.Event]:
        """An event that is set at the next notification; register before looking."""
        event = asyncio.Event()
        key = (channel, backend)
        self._waiters[key].add(event)
        try:
            yield event
        finally:
            self._waiters[key].discard(event)
            if not self._waiters[key]:
                del self._waiters[key]

    def wake(self, channel: str, backend: str) -> None:
        """Something may have changed."""
        waiting = self._waiters.get((channel, backend), ())
        self.heard[channel] += 1
        self.woken[channel] += len(waiting)
        for event in waiting:
            event.set()

    def wake_all(self) -> None:
        """Anything may have changed."""
        for (channel, _), events in self._waiters.items():
            self.woken[channel] += len(events)
            for event in events:
                event.set()

    def waiting_for(self, channel: str) -> dict[str, int]:
        """Backend -> how many wait to hear of it on this channel."""
        return {backend: len(events) for (name, backend), events in self._waiters.items() if name == channel}

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(len(events) for events in self._waiters.values())


class Listener:
    """Keeps one LISTENing connection open, for ever.

    :param heard: called with (channel, payload) for each notification.
    :param reconnected: called whenever listening has (re)started, because something may have been missed.
    """

    def __init__(
        self,
        dsn: str,
        channels: tuple[str, ...],
        clock: Clock,
        *,
        heard: Callable[[str, str], None],
        reconnected: Callable[[], None],
    ) -> None:
        self._dsn = dsn
        self._channels = channels
        self._clock = clock
        self._heard = heard
        self._reconnected = reconnected
        self.connected = False
        """Whether notifications come now."""

    async def run(self) -> None:
        """Listen until cancelled."""
        failures = 0
        while True:
            try:
                lost = asyncio.Event()
                connection = await self._connect(lost)
            except Exception as error:
                # Whatever it is: without a listener, every wake-up is lost.
                delay = _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)]
                log.warning("listener_away", error=type(error).__name__, retry_seconds=delay)
                failures += 1
                await self._clock.sleep(delay)
                continue
            failures = 0
            self.connected = True
            self._reconnected()
            try:
                await lost.wait()
                log.warning("listener_lost")
            finally:
                self.connected = False
                with suppress(Exception):
                    await connection.close(timeout=2)

    async def _connect(self, lost: asyncio.Event) -> "asyncpg.Connection[asyncpg.Record]":
        connection = await asyncpg.connect(self._dsn, timeout=10)
        try:
            connection.add_termination_listener(lambda *_: lost.set())
            for channel in self._channels:
                await connection.add_listener(channel, lambda _c, _pid, channel, payload: self._heard(channel, payload))
        except BaseException:  # a stop may come in between, too
            connection.terminate()
            raise
        return connection
