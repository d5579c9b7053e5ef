"""Wake-ups that tell a test when somebody sleeps."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from controller.store.listen import Wakeups


class _ObservedEvent(asyncio.Event):
    """An event that announces its waiter."""

    def __init__(self, asleep: asyncio.Event) -> None:
        super().__init__()
        self._asleep = asleep

    async def wait(self) -> Literal[True]:
        self._asleep.set()
        return await super().wait()


class ObservedWakeups(Wakeups):
    """`asleep` is set as soon as a waiter has looked and goes to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.asleep = asyncio.Event()

    @contextmanager
    def waiter(self, channel: str, backend: str) -> Iterator[asyncio.Event]:
        key = (channel, backend)
        with super().waiter(channel, backend) as plain:
            observed = _ObservedEvent(self.asleep)
            self._waiters[key].discard(plain)
            self._waiters[key].add(observed)
            try:
                yield observed
            finally:
                self._waiters[key].discard(observed)
