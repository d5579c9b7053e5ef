"""Ctrl-C and SIGTERM as a cancellation: the program's own clean-up runs, once and to its end."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], on_signal: Callable[[], None]) -> T | None:
    """The result of `work`; None if a signal ended it.

    The first signal cancels `work`. Later ones change nothing: the clean-up is bounded, and one that is cut short
    leaves processes behind.
    """
    return asyncio.run(_guarded(work, on_signal))


async def _guarded(work: Coroutine[Any, Any, T], on_signal: Callable[[], None]) -> T | None:
    task = asyncio.ensure_future(work)
    told = False

    def stop() -> None:
        nonlocal told
        if not told and not task.done():
            told = True
            on_signal()
            task.cancel()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup the terminal's end is not ours
        loop.add_signal_handler(signal.SIGHUP, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if told:
            return None
        raise
