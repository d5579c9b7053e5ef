"""What happens at the same moment, or in one batch: nothing is lost, done twice, or left half-done."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import asyncpg
import pytest

from common.protocol import ClaimRequest, Declaration, Held, ReleaseRequest, Report, ReportsRequest, TaskOffer, Verdict
from controller.core.codes import JobState
from controller.core.model import JobId, RapId
from controller.engine.results import Created
from controller.store import backends
from controller.store.db import Database
from tests.engine.conftest import Harness, Study, listening
from tests.factories import principal

DONE: dict[str, Any] = {"stage": "finalized", "complete": True, "results": {"error": False, "exit_code": "0"}}
BROKEN: dict[str, Any] = {"stage": "finalized", "complete": True, "results": {"error": False, "exit_code": "1"}}
ERROR: dict[str, Any] = {"stage": "error", "complete": True, "results": {"error": {"message": "no disk"}}}


def said(task: TaskOffer, stage: str = "executing", **more: Any) -> Report:
    values: dict[str, Any] = {"task_id": task.id, "attempt": task.attempt, "stage": stage}
    return Report(**values | more)


async def verdicts(harness: Harness, *reports: Report, backend: str = "test") -> list[str]:
    answer = await harness.engine.report(backend, ReportsRequest(agent=harness.agent, reports=reports))
    return [each.verdict.value for each in answer.answers]


async def claimed(harness: Harness, study: Study, *actions: str) -> tuple[RapId, dict[str, TaskOffer]]:
    created = await harness.create(study.request(*actions))
    await harness.settle()
    return created.rap_id, {task.definition["action"]: task for task in await harness.claim()}


async def history(harness: Harness, rap_id: RapId, action: str) -> list[str]:
    detail = await harness.engine.rap_detail(principal("test", "other"), rap_id)
    (job,) = [each for each in detail.jobs if each.job.spec.action == action]
    return [entry.code.value for entry in job.history]


class TestBatches:
    async def test_a_batch_is_judged_in_its_order(self, harness: Harness, study: Study) -> None:
        rap_id, tasks = await claimed(harness, study, "extract", "query")
        task, other = tasks["extract"], tasks["query"]
        unknown = Report(task_id="none-001", attempt=1, stage="executing")
        late = said(task, "finalizing")
        batch = [
            said(task, "preparing"),
            said(other),
            said(task),
            unknown,
            said(task, **DONE),
            said(task, **BROKEN),
            late,
        ]
        assert await verdicts(harness, *batch) == [
            "applied",
            "applied",
            "applied",
            "unknown",
            "applied",
            "repeated",
            "repeated",
        ]
        assert await harness.codes(rap_id) == {"extract": "succeeded", "query": "executing"}
        assert await history(harness, rap_id, "extract") == [
            "created",
            "initiated",
            "preparing",
            "executing",
            "succeeded",
        ]

    async def test_a_retry_within_a_batch_ends_one_attempt_only(self, harness: Harness, study: Study) -> None:
        rap_id, tasks = await claimed(harness, study, "extract")
        task = tasks["extract"]
        assert await verdicts(harness, said(task, **ERROR), said(task, **ERROR), said(task, **DONE)) == [
            "applied",
            "repeated",
            "repeated",
        ]
        job = (await harness.jobs(rap_id))["extract"]
        assert (job.progress.code.value, job.progress.attempt) == ("waiting_on_new_task", 1)
        harness.clock.advance(300)
        await harness.settle()
        (again,) = await harness.claim()
        assert await verdicts(harness, said(task, **DONE), said(again, **DONE)) == ["repeated", "applied"]

    async def test_the_same_batch_again_changes_nothing(self, harness: Harness, study: Study) -> None:
        rap_id, tasks = await claimed(harness, study, "extract", "query")
        batch = [said(tasks["extract"]), said(tasks["query"], **BROKEN), said(tasks["extract"], **DONE)]
        await verdicts(harness, *batch)
        before, told = await harness.jobs(rap_id), await history(harness, rap_id, "extract")
        harness.clock.advance(5)
        assert set(await verdicts(harness, *batch)) == {"repeated"}
        assert await harness.jobs(rap_id) == before
        assert await history(harness, rap_id, "extract") == told

    async def test_another_backends_task_is_unknown(self, harness: Harness, study: Study) -> None:
        rap_id, tasks = await claimed(harness, study, "extract")
        assert await verdicts(harness, said(tasks["extract"], **DONE), backend="other") == ["unknown"]
        held = (Held(task_id=tasks["extract"].id, attempt=1),)
        released = await harness.engine.release("other", ReleaseRequest(agent=harness.agent, tasks=held))
        assert released.released == 0
        answer = await harness.engine.claim("other", ClaimRequest(agent=harness.agent, slots=9, holding=held))
        assert (answer.tasks, answer.revoked) == ((), (tasks["extract"].id,))
        assert await harness.codes(rap_id) == {"extract": "initiated"}

    async def test_an_attempt_handed_back_twice_is_handed_back_once(self, harness: Harness, study: Study) -> None:
        rap_id, tasks = await claimed(harness, study, "extract")
        held = (Held(task_id=tasks["extract"].id, attempt=1),) * 2
        answers = await asyncio.gather(
            *(harness.engine.release("test", ReleaseRequest(agent=harness.agent, tasks=held)) for _ in range(3))
        )
        assert sorted(answer.released for answer in answers) == [0, 0, 1]
        await harness.settle()
        assert (await harness.jobs(rap_id))["extract"].progress.attempt == 2


async def test_a_cancel_at_the_same_moment_as_anything_else_ends_in_one_consistent_state(
    harness: Harness, study: Study
) -> None:
    """Whoever comes first: the job is over, its task is void, and nothing contradicts that afterwards."""
    for number, rival in enumerate(
        itertools.islice(itertools.cycle(["final", "error", "release", "schedule", "claim"]), 25)
    ):
        rap_id, tasks = await claimed(harness, study, "extract")
        task = tasks["extract"]
        held = ReleaseRequest(agent=harness.agent, tasks=(Held(task_id=task.id, attempt=1),))
        rivals: dict[str, Callable[[], Awaitable[Any]]] = {
            "final": partial(harness.finish, task),
            "error": partial(harness.report, task, **ERROR),
            "release": partial(harness.engine.release, "test", held),
            "schedule": harness.settle,
            "claim": partial(harness.claim, holding=[task]),
        }
        cancel = harness.engine.cancel(principal(), rap_id, ["extract"])
        pair = [cancel, rivals[rival]()]
        await asyncio.gather(*(pair if number % 2 else reversed(pair)))
        await harness.settle()
        job = (await harness.jobs(rap_id))["extract"]
        assert job.progress.cancelled
        assert job.progress.state in ({JobState.SUCCEEDED, JobState.FAILED} if rival == "final" else {JobState.FAILED})
        assert job.progress.completed_at is not None
        left = [each for each in await harness.engine.active_tasks("test") if each.type == "runjob"]
        assert left == []
        for cancelling in await harness.claim():
            assert cancelling.type == "canceljob"
            assert await harness.report(cancelling, "finalized", complete=True) is Verdict.APPLIED


@pytest.mark.parametrize("how", [DONE, BROKEN], ids=["succeeds", "fails"])
async def test_a_rap_made_while_the_job_it_awaits_ends_is_never_left_waiting(
    harness: Harness, study: Study, how: dict[str, Any]
) -> None:
    for _ in range(10):
        _, tasks = await claimed(harness, study, "extract")
        request = study.request("analyse")
        answer, _ = await asyncio.gather(
            harness.engine.create_rap(principal("test", "other"), request), harness.report(tasks["extract"], **how)
        )
        assert isinstance(answer, Created)
        await harness.settle()
        for task in await harness.claim():
            await harness.finish(task)
        await harness.settle()
        for task in await harness.claim():
            await harness.finish(task)
        await harness.settle()
        states = {job.progress.state for job in (await harness.jobs(request.rap_id)).values()}
        assert not states & {JobState.PENDING, JobState.RUNNING}


async def test_simultaneous_claims_of_one_agent_never_exceed_its_slots_together(harness: Harness, study: Study) -> None:
    await harness.create(study.request("extract", "query"))
    await harness.settle()
    answers = await asyncio.gather(*(harness.claim(1) for _ in range(8)))
    assert {task.id for tasks in answers for task in tasks} == {answers[0][0].id}


async def test_a_poll_that_was_given_up_takes_no_task_with_it(harness: Harness, study: Study) -> None:
    async with listening(harness):
        lost = asyncio.create_task(harness.claim(wait=30))
        await harness.waiter_arrives()
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
        assert harness.context.wakeups.waiting == 0
        await harness.create(study.request("extract"))
        await harness.settle()
        assert len(await harness.claim(wait=30)) == 1


async def test_waiting_agents_leave_nothing_behind(harness: Harness) -> None:
    await asyncio.gather(*(harness.claim(agent=f"agent-{number}") for number in range(50)))
    assert harness.context.wakeups.waiting == 0
    assert len(harness.context.looking) == 0


class TestPause:
    async def test_what_can_never_start_fails_after_the_pause_and_not_during_it(
        self, harness: Harness, study: Study
    ) -> None:
        rap_id, tasks = await claimed(harness, study, "report")
        await harness.set_flag("paused", "true")
        await harness.settle()
        await harness.finish(tasks["extract"], exit_code=1)
        await harness.settle()
        paused = {"extract": "nonzero_exit", "analyse": "paused", "count": "paused", "report": "paused"}
        assert await harness.codes(rap_id) == paused
        await harness.set_flag("paused", None)
        await harness.settle()
        failed = dict.fromkeys(("analyse", "count", "report"), "dependency_failed")
        assert await harness.codes(rap_id) == {"extract": "nonzero_exit"} | failed

    async def test_a_cancel_goes_before_a_pause_and_maintenance(self, harness: Harness, study: Study) -> None:
        rap_id, _ = await claimed(harness, study, "query", "analyse")
        await harness.set_flag("paused", "true")
        await harness.set_flag("mode", "db-maintenance")
        await harness.settle()
        assert await harness.codes(rap_id) == {"extract": "initiated", "analyse": "paused", "query": "paused"}
        await harness.engine.cancel(principal(), rap_id, ["query", "analyse"])
        await harness.settle()
        codes = await harness.codes(rap_id)
        assert (codes["query"], codes["analyse"]) == ("cancelled_by_user", "cancelled_by_user")

    async def test_what_waited_for_others_waits_again_after_a_pause(self, harness: Harness, study: Study) -> None:
        rap_id, _ = await claimed(harness, study, "analyse")
        await harness.set_flag("paused", "true")
        await harness.settle()
        await harness.set_flag("paused", None)
        await harness.settle()
        assert await harness.codes(rap_id) == {"extract": "initiated", "analyse": "waiting_on_dependencies"}


async def test_history_does_not_go_back_when_the_clock_does(harness: Harness, study: Study) -> None:
    created = await harness.create(study.request("extract"))
    harness.clock.advance(-3600)
    await harness.settle()
    (task,) = await harness.claim()
    harness.clock.advance(-3600)
    await harness.report(task, "executing", timestamp_ns=1)
    harness.clock.advance(-3600)
    await harness.finish(task)
    job_id = JobId(task.job_id or "")
    detail = await harness.engine.job_detail(principal(), job_id)
    times = [entry.at for entry in detail.history]
    assert times == sorted(times)
    progress = detail.job.progress
    assert progress.started_at is not None
    assert progress.completed_at is not None
    assert detail.job.spec.created_at <= progress.started_at <= progress.completed_at
    await harness.engine.cancel(principal(), created.rap_id, ["extract"])
    again = (await harness.jobs(created.rap_id))["extract"].progress
    assert again.completed_at is not None
    assert again.completed_at >= progress.completed_at


async def test_an_agent_that_starts_anew_and_its_last_claim_do_not_lock_each_other_out(
    harness: Harness, database: Database, database_dsn: str
) -> None:
    onlooker = await asyncpg.connect(database_dsn)
    try:
        async with database.transaction() as claim:
            await backends.see.run(claim, backend="test", now=harness.clock.now())
            declaration = Declaration(version="2", executor="fake", slots=1)
            declared = asyncio.create_task(harness.engine.declare_agent("test", harness.agent, declaration))
            async with asyncio.timeout(20):
                while not await onlooker.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
                    assert not declared.done()
            await claim.execute("SELECT FROM agent WHERE id = $1 FOR UPDATE NOWAIT", harness.agent)
        await declared
    finally:
        await onlooker.close()


async def test_what_a_void_attempt_made_is_not_the_jobs(harness: Harness, study: Study) -> None:
    rap_id, tasks = await claimed(harness, study, "extract")
    results = {
        "error": {"message": "no disk"},
        "outputs": [{"path": "a.csv", "level": "highly_sensitive", "size": 1, "sha256": "0" * 64}],
    }
    report = said(tasks["extract"], "error", complete=True, results=results)
    assert await verdicts(harness, report) == ["applied"]
    (detail,) = (await harness.engine.rap_detail(principal("test"), rap_id)).jobs
    assert (detail.job.progress.code.value, detail.outputs) == ("waiting_on_new_task", ())
