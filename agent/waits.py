"""Waiting for one thing, but not past another."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from common.clock import Clock

T = TypeVar("T")


class Interrupted(Exception):
    """The event came before the work was done; the work was cancelled."""


async def _race(work: asyncio.Task[T], other: asyncio.Task[Any]) -> bool:
    """True if `work` ended first. Both are over when this returns or raises."""
    try:
        await asyncio.wait({work, other}, return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        for task in (work, other):
            task.cancel()
        await asyncio.gather(work, other, return_exceptions=True)


async def bounded(clock: Clock, seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`.

    :raises TimeoutError: `seconds` passed first; `work` was cancelled.
    """
    task = asyncio.create_task(work)
    if await _race(task, asyncio.create_task(clock.sleep(seconds))):
        return task.result()
    raise TimeoutError(f"not done within {seconds:g} s")


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`.

    :raises Interrupted: `event` was set first; `work` was cancelled and has ended.
    """
    if event.is_set():
        work.close()
        raise Interrupted
    task = asyncio.create_task(work)
    if await _race(task, asyncio.create_task(event.wait())):
        return task.result()
    raise Interrupted


async def pause(clock: Clock, seconds: float, event: asyncio.Event) -> None:
    """Return after `seconds`, or as soon as `event` is set."""
    with contextlib.suppress(Interrupted):
        await unless(event, clock.sleep(seconds))


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """Run blocking `work` in a thread. When cancelled, its event is set, and this waits until it has ended.

    So nobody removes a folder that a thread still writes to.
    """
    stop = threading.Event()
    task = asyncio.create_task(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.gather(task, return_exceptions=True)
        raise
