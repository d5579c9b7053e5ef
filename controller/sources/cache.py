"""What was looked up once and is asked for again: bounded, with an age limit, one look-up at a time per key."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from common.clock import Clock, SystemClock

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Least recently used entries go first; failures are not kept.

    Callers that ask for one key at the same time share one look-up, and a caller that gives up does not take it
    away from the others.

    :param size: most entries kept.
    :param seconds: age after which an entry is looked up again; None for values that never change.
    """

    def __init__(self, size: int, *, seconds: float | None = None, clock: Clock | None = None) -> None:
        self._size = size
        self._seconds = seconds
        self._clock = clock or SystemClock()
        self._kept: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._pending: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K, look_up: Callable[[], Awaitable[V]]) -> V:
        """The value of `key`, from memory if it is there and young enough, else from `look_up`.

        :raises Exception: whatever `look_up` raised.
        """
        if key in self._kept:
            at, value = self._kept[key]
            if self._seconds is None or self._clock.monotonic() - at < self._seconds:
                self._kept.move_to_end(key)
                return value
        task = self._pending.get(key)
        if task is None:
            task = asyncio.create_task(self._fill(key, look_up))
            self._pending[key] = task
            task.add_done_callback(lambda done: self._settle(key, done))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up every look-up that is under way."""
        pending = list(self._pending.values())
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    async def _fill(self, key: K, look_up: Callable[[], Awaitable[V]]) -> V:
        value = await look_up()
        self._kept[key] = (self._clock.monotonic(), value)
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return value

    def _settle(self, key: K, done: asyncio.Task[V]) -> None:
        del self._pending[key]
        if not done.cancelled():
            # Seen, even if every caller has gone: otherwise asyncio complains of an error that nobody retrieved.
            done.exception()
