"""The listener through connections that fail, and its own end at any moment."""

import asyncio
from typing import Any

import asyncpg
import pytest

from common.clock import SystemClock
from controller.store.listen import Listener, Wakeups


async def others(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    """How many other connections the database has."""
    count = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return int(count)


@pytest.mark.parametrize("steps", range(0, 40, 4))
async def test_a_listener_that_is_stopped_at_any_moment_leaves_no_connection(database_dsn: str, steps: int) -> None:
    watch = await asyncpg.connect(database_dsn)
    try:
        wakeups = Wakeups()
        listener = Listener(database_dsn, ("a", "b"), SystemClock(), heard=wakeups.wake, reconnected=wakeups.wake_all)
        running = asyncio.create_task(listener.run())
        for _ in range(steps):
            await watch.fetchval("SELECT 1")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        async with asyncio.timeout(10):
            while await others(watch):
                pass
    finally:
        await watch.close()


async def test_whatever_keeps_it_from_connecting_it_tries_again(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = asyncio.Event()
    connect = asyncpg.connect
    failures = iter(
        [OSError(), asyncpg.InternalClientError("state 11"), asyncpg.InvalidPasswordError("no"), KeyError()]
    )

    async def failing(*args: Any, **kwargs: Any) -> Any:
        for failure in failures:
            raise failure
        return await connect(*args, **kwargs)

    monkeypatch.setattr(asyncpg, "connect", failing)
    listener = Listener(database_dsn, ("a",), SystemClock(), heard=lambda *_: None, reconnected=heard.set)
    running = asyncio.create_task(listener.run())
    async with asyncio.timeout(20):
        await heard.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
