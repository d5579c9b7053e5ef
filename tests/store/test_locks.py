"""Transactions that lock several tasks do so in one order, so that no two wait for each other for ever."""

import asyncio
from typing import Any

import asyncpg
import pytest

from controller.store import tasks
from controller.store.db import Database, prepare_connection
from controller.store.queries import Query
from tests.factories import NOW
from tests.store.seeded import seed_one

STATEMENTS: list[tuple[Query[Any], dict[str, Any]]] = [
    (tasks.renew, {"holding": ["z", "a"], "backend": "test", "agent": "agent-1", "lease": NOW}),
    (tasks.lock, {"ids": ["a", "z"], "backend": "test"}),
    (tasks.void_runs, {"job_ids": None, "now": NOW}),
    (tasks.release, {"ids": ["a", "z"], "backend": "test", "agent": "agent-1"}),
]


@pytest.mark.parametrize(("query", "values"), STATEMENTS, ids=lambda value: getattr(value, "name", ""))
async def test_tasks_are_locked_oldest_first(
    database: Database, database_dsn: str, query: Query[Any], values: dict[str, Any]
) -> None:
    await seed_one(database)
    async with database.connection() as tx:
        # By id the younger comes first.
        await tx.execute(
            "UPDATE task SET id = CASE WHEN attempt = 1 THEN 'z' END WHERE seq = (SELECT min(seq) FROM task)"
        )
        await tx.execute("UPDATE task SET id = 'a' WHERE id <> 'z'")
        await tx.execute("UPDATE task SET agent = 'agent-1', lease_expires_at = now()")
        job_ids = [row["job_id"] for row in await tx.fetch("SELECT job_id FROM task ORDER BY seq DESC")]
    if "job_ids" in values:
        values = values | {"job_ids": job_ids}
    locker = await asyncpg.connect(database_dsn)
    ours = await asyncpg.connect(database_dsn)
    try:
        await prepare_connection(ours)
        await ours.execute("SET enable_seqscan = off")
        await ours.execute("SET enable_bitmapscan = off")
        transaction = locker.transaction()
        await transaction.start()
        await locker.execute("SELECT FROM task WHERE id = 'z' FOR UPDATE")
        running = asyncio.create_task(query.run(ours, **values))
        async with asyncio.timeout(20):
            while not await locker.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
                assert not running.done()
        await locker.execute("SELECT FROM task WHERE id = 'a' FOR UPDATE NOWAIT")
        await transaction.rollback()
        await running
    finally:
        await locker.close()
        await ours.close()


async def test_a_claim_passes_by_what_another_is_just_taking(database: Database, database_dsn: str) -> None:
    """Neither waits for the other, and nothing is given out twice."""
    await seed_one(database)
    async with database.connection() as tx:
        await tx.execute("UPDATE task SET agent = NULL, lease_expires_at = NULL")
        offered = {row["id"] for row in await tx.fetch("SELECT id FROM task WHERE active AND type = 'runjob'")}
    values = {"backend": "test", "holding": [], "slots": 10, "lease": NOW}
    other = await asyncpg.connect(database_dsn)
    try:
        await prepare_connection(other)
        transaction = other.transaction()
        await transaction.start()
        taken = await tasks.claim.all(other, agent="agent-1", **values)
        assert {claimed.task.id for claimed in taken} == offered != set()
        async with asyncio.timeout(10), database.connection() as tx:
            assert await tasks.claim.all(tx, agent="agent-2", **values) == []
        await transaction.rollback()
        async with database.connection() as tx:
            assert {claimed.task.id for claimed in await tasks.claim.all(tx, agent="agent-2", **values)} == offered
    finally:
        await other.close()
