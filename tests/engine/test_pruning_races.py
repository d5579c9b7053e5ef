"""What happens while something is being pruned: no request fails by it, and nothing of it stays behind."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from controller.core.model import RapId, Verb
from controller.engine.pruning import Pruned
from controller.store import jobs, pruning, tasks
from controller.store.db import Database
from controller.store.queries import Query, Tx
from tests.engine.conftest import Harness, Study
from tests.factories import principal

MANAGER = principal("test", verbs=frozenset(Verb))
MONTH = timedelta(days=30)


async def prune(harness: Harness) -> Pruned:
    return await harness.engine.prune(MANAGER, "test", older_than=MONTH, after=0, dry_run=False)


@pytest.fixture
async def superseded(harness: Harness, study: Study) -> RapId:
    """A RAP of long ago that nobody needs: another one has run its action since."""
    old = await harness.create(study.request("extract"))
    await harness.run_all()
    await harness.create(study.request("extract"))
    await harness.run_all()
    harness.clock.advance((MONTH + timedelta(days=1)).total_seconds())
    return old.rap_id


def after(monkeypatch: pytest.MonkeyPatch, query: Query[Any], act: Callable[[], Awaitable[Any]]) -> None:
    """Do `act` right after `query` has read its rows."""
    original = Query.all

    async def read(self: Query[Any], tx: Tx, **values: Any) -> list[Any]:
        rows = await original(self, tx, **values)
        if self is query:
            await act()
        return rows

    monkeypatch.setattr(Query, "all", read)


async def test_a_list_leaves_out_what_goes_while_it_is_made(
    harness: Harness, superseded: RapId, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(monkeypatch, jobs.list_page, lambda: prune(harness))
    page = await harness.engine.list_jobs(
        MANAGER, backend=None, workspace=None, state=None, code=None, limit=10, cursor=None
    )
    assert [job.action for job in page.jobs] == ["extract"]
    assert page.jobs[0].rap_id != superseded


async def test_a_rap_that_is_cancelled_late_is_not_removed_as_an_old_one(
    harness: Harness, superseded: RapId, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(monkeypatch, pruning.page, lambda: harness.engine.cancel(MANAGER, superseded, ["extract"]))
    assert (await prune(harness)).counts.raps == 0
    assert (await harness.jobs(superseded))["extract"].progress.cancelled


async def test_a_chunk_of_a_log_that_comes_meanwhile_goes_as_well(
    harness: Harness, superseded: RapId, database: Database, database_dsn: str
) -> None:
    job = (await harness.jobs(superseded))["extract"]
    onlooker = await asyncpg.connect(database_dsn)
    try:
        async with database.transaction() as tx:
            (task,) = await tasks.lock.all(tx, backend="test", ids=[f"{job.id}-001"])
            pruned = asyncio.create_task(prune(harness))
            async with asyncio.timeout(20):
                while not await onlooker.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
                    assert not pruned.done()
            await jobs.append_log.run(tx, job_id=task.job_id, attempt=1, start=0, text="late")
        assert (await pruned).counts.raps == 1
        assert await onlooker.fetchval("SELECT count(*) FROM job_log") == 0
    finally:
        await onlooker.close()
