"""The diagnosis of real rows: each fault is made, and found."""

import pytest
from attrs import evolve

from controller.core.diagnosis import Severity
from controller.core.model import Verb
from controller.core.schedule import Limits
from controller.store.db import Database
from tests.engine.conftest import Harness, Study, limited
from tests.factories import principal

READER = principal("test", "other", verbs=frozenset({Verb.READ}))


async def wrong(harness: Harness) -> dict[str, Severity]:
    """What is not in order with the backend `test`."""
    found = (await harness.engine.diagnose(READER)).findings
    return {each.name: each.level for each in found if each.level is not Severity.OK and each.backend == "test"}


async def alive(harness: Harness) -> None:
    await harness.claim(0)


async def test_all_is_well(harness: Harness, study: Study) -> None:
    await harness.create(study.request("run_all"))
    await harness.run_all()
    await alive(harness)
    assert await wrong(harness) == {}


async def test_jobs_that_nobody_schedules(harness: Harness, study: Study) -> None:
    await harness.create(study.request("extract"))
    harness.clock.advance(61)
    await alive(harness)
    assert await wrong(harness) == {"scheduler": Severity.PROBLEM}


async def test_tasks_that_nobody_takes(harness: Harness, study: Study) -> None:
    await harness.create(study.request("extract"))
    await harness.settle()
    harness.clock.advance(61)
    await alive(harness)
    assert await wrong(harness) == {"tasks_taken": Severity.PROBLEM}


async def test_an_agent_that_fell_silent_with_a_job(harness: Harness, study: Study) -> None:
    await harness.create(study.request("extract"))
    await harness.settle()
    await harness.claim()
    harness.clock.advance(harness.context.lease_seconds * 7)
    assert await wrong(harness) == {"agents": Severity.PROBLEM, "leases": Severity.PROBLEM}


async def test_a_running_job_without_a_task(harness: Harness, study: Study, database: Database) -> None:
    await harness.create(study.request("extract"))
    await harness.settle()
    async with database.connection() as tx:
        await tx.execute("UPDATE task SET active = false, finished_at = now()")
    await alive(harness)
    assert await wrong(harness) == {"running_jobs": Severity.PROBLEM}


async def test_a_stop_that_nobody_confirms(harness: Harness, study: Study) -> None:
    created = await harness.create(study.request("extract"))
    await harness.settle()
    tasks = await harness.claim()
    await harness.engine.cancel(principal("test"), created.rap_id, ["extract"])
    harness.clock.advance(601)
    await harness.claim(0, holding=tasks)
    assert await wrong(harness) == {"stops": Severity.WARNING}


@pytest.mark.parametrize("override", [False, True])
async def test_a_job_heavier_than_its_pool(harness: Harness, study: Study, database: Database, override: bool) -> None:
    heavy = limited(harness, 4, "[default]\n'python:.*' = 3\n")
    await heavy.create(study.request("extract"))
    await heavy.settle()
    async with database.connection() as tx:
        await tx.execute("UPDATE job SET state = 'pending', code = 'waiting_on_workers', started_at = NULL")
        await tx.execute("DELETE FROM task")
        if override:
            await tx.execute("UPDATE backend SET workers = 2, db_workers = 2 WHERE slug = 'test'")
    await alive(heavy)
    small = heavy if override else limited(heavy, 2)
    assert await wrong(small) == {"weights": Severity.PROBLEM}
    terms = small.context.backends["test"]
    closed = evolve(terms, limits=Limits(workers=0, db_workers=0))
    small.context.backends["test"] = closed
    if not override:
        assert await wrong(small) == {}


async def test_only_what_the_caller_may_read(harness: Harness) -> None:
    found = await harness.engine.diagnose(principal("other", verbs=frozenset({Verb.READ})))
    assert {each.backend for each in found.findings} == {None, "other"}
    assert found.at == harness.clock.now()
