"""Kill and retry: what they do to a job in each state, and what at the same moment as anything else."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.ids import job_id as id_of_job
from common.protocol import Held, ReleaseRequest, TaskOffer, Verdict
from controller.core.codes import JobState
from controller.core.errors import Forbidden, NotFound, Rejected
from controller.core.model import Job, JobId, RapId, Verb
from controller.engine.retrying import RetryOutcome
from tests.engine.conftest import Harness, Study, commit_project
from tests.factories import principal

OPERATOR = principal("test", verbs=frozenset({Verb.READ, Verb.MANAGE}))
"""Without the right to run: what an operator retries runs in the name of who asked for it."""
ERROR: dict[str, Any] = {"stage": "error", "complete": True, "results": {"error": {"message": "no disk"}}}


async def claimed(harness: Harness, study: Study, *actions: str) -> tuple[RapId, dict[str, TaskOffer]]:
    created = await harness.create(study.request(*actions))
    await harness.settle()
    return created.rap_id, {task.definition["action"]: task for task in await harness.claim()}


async def job(harness: Harness, rap_id: str, action: str = "extract") -> Job:
    return (await harness.jobs(rap_id))[action]


async def active(harness: Harness) -> list[tuple[str, int]]:
    return [(task.type.value, task.attempt) for task in await harness.engine.active_tasks("test")]


async def events(harness: Harness, job_id: JobId) -> list[tuple[str, str]]:
    detail = await harness.engine.job_detail(principal(), job_id)
    return [(entry.code.value, entry.message) for entry in detail.history]


class TestKill:
    async def test_a_running_job_fails_its_agent_is_told_and_dependants_fail(
        self, harness: Harness, study: Study
    ) -> None:
        rap_id, tasks = await claimed(harness, study, "report")
        harness.clock.advance(5)
        done = await harness.engine.kill(OPERATOR, JobId(tasks["extract"].job_id or ""))
        assert (done.changed, done.job.progress.code.value) == (True, "killed_by_admin")
        assert done.job.progress.message == "Killed by an administrator"
        assert done.job.progress.completed_at == harness.clock.now()
        assert not done.job.progress.cancelled
        assert await active(harness) == [("canceljob", 1)]
        await harness.settle()
        failed = dict.fromkeys(("analyse", "count", "report"), "dependency_failed")
        assert await harness.codes(rap_id) == {"extract": "killed_by_admin"} | failed
        assert await harness.finish(tasks["extract"]) is Verdict.STALE
        assert (await events(harness, done.job.id))[-1] == ("killed_by_admin", "Killed by an administrator")

    async def test_a_pending_job_fails_and_nobody_is_told(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("extract"))
        done = await harness.engine.kill(OPERATOR, (await job(harness, created.rap_id)).id)
        assert done.changed
        assert await active(harness) == []
        await harness.settle()
        assert await harness.codes(created.rap_id) == {"extract": "killed_by_admin"}

    async def test_again_changes_nothing(self, harness: Harness, study: Study) -> None:
        _, tasks = await claimed(harness, study, "extract")
        first = await harness.engine.kill(OPERATOR, JobId(tasks["extract"].job_id or ""))
        told = await events(harness, first.job.id)
        harness.clock.advance(5)
        again = await harness.engine.kill(OPERATOR, first.job.id)
        assert (again.changed, again.job) == (False, first.job)
        assert await events(harness, first.job.id) == told
        assert await active(harness) == [("canceljob", 1)]

    async def test_a_succeeded_job_is_left_alone(self, harness: Harness, study: Study) -> None:
        rap_id, tasks = await claimed(harness, study, "extract")
        await harness.finish(tasks["extract"])
        before = await job(harness, rap_id)
        done = await harness.engine.kill(OPERATOR, before.id)
        assert (done.changed, done.job) == (False, before)

    async def test_what_was_killed_runs_again_when_it_is_needed(self, harness: Harness, study: Study) -> None:
        """Unlike after a cancel, the workspace remembers the failure."""
        _, tasks = await claimed(harness, study, "extract")
        await harness.engine.kill(OPERATOR, JobId(tasks["extract"].job_id or ""))
        again = await harness.create(study.request("analyse"))
        assert set(await harness.jobs(again.rap_id)) == {"extract", "analyse"}

    @pytest.mark.parametrize("command", ["kill", "retry"])
    async def test_only_operators_of_the_jobs_backend(self, harness: Harness, study: Study, command: str) -> None:
        rap_id, tasks = await claimed(harness, study, "extract")
        call = getattr(harness.engine, command)
        found = JobId(tasks["extract"].job_id or "")
        with pytest.raises(Forbidden):
            await call(principal("test"), found)
        with pytest.raises(NotFound):
            await call(principal("other", verbs=frozenset(Verb)), found)
        with pytest.raises(NotFound):
            await call(OPERATOR, JobId("x" * 16))
        assert await harness.codes(rap_id) == {"extract": "initiated"}


class TestRetry:
    async def test_a_running_job_is_stopped_and_gets_another_attempt(self, harness: Harness, study: Study) -> None:
        rap_id, tasks = await claimed(harness, study, "extract")
        await harness.report(tasks["extract"], **ERROR)
        harness.clock.advance(300)
        await harness.settle()
        (second,) = await harness.claim()
        done = await harness.engine.retry(OPERATOR, JobId(second.job_id or ""), attempt=2)
        assert done.outcome is RetryOutcome.STOPPED
        progress = done.job.progress
        assert (progress.state, progress.code.value, progress.faults) == (JobState.PENDING, "waiting_on_new_task", 0)
        assert await active(harness) == [("canceljob", 2)]
        assert await harness.finish(second) is Verdict.STALE
        await harness.settle()
        (_, third) = await harness.claim()
        assert (third.type, third.attempt) == ("runjob", 3)
        assert await harness.finish(third) is Verdict.APPLIED
        assert await harness.codes(rap_id) == {"extract": "succeeded"}
        assert ("waiting_on_new_task", "An administrator asked for another attempt") in await events(
            harness, done.job.id
        )

    async def test_a_repetition_stops_no_newer_attempt(self, harness: Harness, study: Study) -> None:
        rap_id, tasks = await claimed(harness, study, "extract")
        found = JobId(tasks["extract"].job_id or "")
        await harness.engine.retry(OPERATOR, found, attempt=1)
        await harness.settle()
        again = await harness.engine.retry(OPERATOR, found, attempt=1)
        assert (again.outcome, again.message) == (
            RetryOutcome.NOTHING,
            "Attempt 2 has begun already; nothing was stopped.",
        )
        assert (await job(harness, rap_id)).progress.attempt == 2
        assert (await job(harness, rap_id)).progress.state is JobState.RUNNING

    async def test_a_resting_job_starts_at_once(self, harness: Harness, study: Study) -> None:
        _, tasks = await claimed(harness, study, "extract")
        await harness.report(tasks["extract"], **ERROR)
        await harness.settle()
        assert await harness.claim() == ()
        done = await harness.engine.retry(OPERATOR, JobId(tasks["extract"].job_id or ""))
        assert (done.outcome, done.job.progress.faults, done.job.progress.not_before) == (
            RetryOutcome.HASTENED,
            0,
            None,
        )
        await harness.settle()
        (again,) = await harness.claim()
        assert again.attempt == 2

    async def test_a_job_that_waits_has_nothing_to_retry(self, harness: Harness, study: Study) -> None:
        rap_id, _ = await claimed(harness, study, "analyse")
        waiting = await job(harness, rap_id, "analyse")
        done = await harness.engine.retry(OPERATOR, waiting.id)
        assert (done.outcome, done.job) == (RetryOutcome.NOTHING, waiting)
        assert "Waiting on dependencies" in done.message

    async def test_a_succeeded_job_is_refused(self, harness: Harness, study: Study) -> None:
        rap_id, tasks = await claimed(harness, study, "extract")
        await harness.finish(tasks["extract"])
        with pytest.raises(Rejected, match="rap submit"):
            await harness.engine.retry(OPERATOR, (await job(harness, rap_id)).id)

    async def test_a_failed_job_gets_a_rap_of_its_own_and_only_one(self, harness: Harness, study: Study) -> None:
        request = study.request("extract", "query", force_run_dependencies=True, analysis_scope={"a": ("b",)})
        first = await harness.create(request)
        await harness.settle()
        for task in await harness.claim():
            await harness.finish(task, exit_code=1)
        failed = await job(harness, first.rap_id, "query")
        answers = await asyncio.gather(*(harness.engine.retry(OPERATOR, failed.id) for _ in range(3)))
        answers += [await harness.engine.retry(OPERATOR, failed.id)]
        (new_rap,) = {answer.rap_id for answer in answers}
        assert new_rap is not None
        assert {answer.outcome for answer in answers} == {RetryOutcome.RESUBMITTED}
        assert {answer.new_job for answer in answers} == {id_of_job(new_rap, "query")}
        assert await job(harness, first.rap_id, "query") == failed
        found = await harness.jobs(new_rap)
        assert set(found) == {"query"}
        spec, old = found["query"].spec, failed.spec
        assert (spec.commit, spec.branch, spec.database_name, spec.analysis_scope, spec.workspace) == (
            *(old.commit, old.branch, old.database_name, old.analysis_scope),
            old.workspace,
        )
        raps = await harness.engine.list_raps(
            principal(), backend=None, workspace=None, state=None, limit=9, cursor=None
        )
        assert {rap.id: rap.created_by for rap in raps.raps} == dict.fromkeys([first.rap_id, new_rap], "researcher")

    async def test_dependencies_that_succeeded_do_not_run_again(self, harness: Harness, study: Study) -> None:
        first = await harness.create(study.request("analyse", force_run_dependencies=True))
        await harness.settle()
        (extract,) = await harness.claim()
        await harness.finish(extract)
        await harness.settle()
        (analyse,) = await harness.claim()
        await harness.finish(analyse, exit_code=1)
        done = await harness.engine.retry(OPERATOR, (await job(harness, first.rap_id, "analyse")).id)
        assert set(await harness.jobs(done.rap_id or "")) == {"analyse"}

    async def test_what_its_user_cancelled_stays_cancelled(self, harness: Harness, study: Study) -> None:
        rap_id, tasks = await claimed(harness, study, "extract")
        await harness.engine.cancel(principal(), rap_id, ["extract"])
        done = await harness.engine.retry(OPERATOR, JobId(tasks["extract"].job_id or ""), attempt=1)
        assert (done.outcome, done.rap_id, "cancelled by its user" in done.message) == (
            RetryOutcome.NOTHING,
            None,
            True,
        )

    async def test_somebody_elses_newer_job_is_named_instead(self, harness: Harness, study: Study) -> None:
        first, tasks = await claimed(harness, study, "extract")
        await harness.finish(tasks["extract"], exit_code=1)
        newer = await harness.create(study.request("extract"))
        found = (await job(harness, first)).id
        done = await harness.engine.retry(OPERATOR, found)
        assert (done.outcome, done.rap_id, done.new_job) == (
            RetryOutcome.NOTHING,
            None,
            (await job(harness, newer.rap_id)).id,
        )
        await harness.run_all()
        done = await harness.engine.retry(OPERATOR, found)
        assert (done.outcome, "is succeeded" in done.message) == (RetryOutcome.NOTHING, True)


@pytest.mark.parametrize("command", ["kill", "retry"])
async def test_a_command_at_the_same_moment_as_anything_else_ends_in_one_consistent_state(
    harness: Harness, study: Study, command: str
) -> None:
    """Whoever comes first: one truth, at most one active attempt, and nothing that contradicts it afterwards."""
    for number, rival in enumerate(
        itertools.islice(itertools.cycle(["final", "error", "release", "schedule", "claim", "cancel"]), 24)
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
            "cancel": partial(harness.engine.cancel, principal(), rap_id, ["extract"]),
        }
        found = JobId(task.job_id or "")
        ours: Awaitable[Any] = (
            harness.engine.kill(OPERATOR, found)
            if command == "kill"
            else harness.engine.retry(OPERATOR, found, attempt=1)
        )
        pair = [ours, rivals[rival]()]
        answers = await asyncio.gather(*(pair if number % 2 else reversed(pair)), return_exceptions=True)
        faults = [answer for answer in answers if isinstance(answer, BaseException)]
        assert all(isinstance(fault, Rejected) and command == "retry" and rival == "final" for fault in faults)
        harness.clock.advance(300)
        await harness.settle()
        ended = (await job(harness, rap_id)).progress
        runs = [each for each in await harness.engine.active_tasks("test") if each.job_id == found]
        running = [each for each in runs if each.type == "runjob"]
        assert (ended.completed_at is not None) == ended.state.is_terminal
        assert len(running) == (0 if ended.state.is_terminal else 1)
        if command == "kill":
            assert ended.code.value in {
                "final": ("killed_by_admin", "succeeded"),
                "cancel": ("killed_by_admin", "cancelled_by_user"),
            }.get(rival, ("killed_by_admin",))
        else:
            assert ended.state in {
                "final": (JobState.RUNNING, JobState.SUCCEEDED),
                "cancel": (JobState.FAILED, JobState.PENDING, JobState.RUNNING),
            }.get(rival, (JobState.RUNNING,))
        for offered in await harness.claim():
            if offered.type == "canceljob":
                assert await harness.report(offered, "finalized", complete=True) is Verdict.APPLIED
            else:
                assert await harness.finish(offered) is Verdict.APPLIED
        assert await harness.finish(task) in (Verdict.STALE, Verdict.REPEATED)


async def test_an_action_called_run_all_is_not_retried_as_all_of_the_project(harness: Harness, tmp_path: Path) -> None:
    def action(name: str, *needs: str) -> dict[str, Any]:
        outputs = {"highly_sensitive": {"rows": f"{name}.csv"}}
        return {"run": f"python:v2 python {name}.py", "needs": list(needs), "outputs": outputs}

    actions = {"run_all": action("first"), "second": action("second", "run_all"), "third": action("third")}
    path = tmp_path / "odd"
    commit = commit_project(path, {"version": "4", "actions": actions})
    _, tasks = await claimed(harness, Study(path, commit), "second")
    await harness.finish(tasks["run_all"], exit_code=1)
    with pytest.raises(Rejected, match="retry one of those that need it"):
        await harness.engine.retry(OPERATOR, JobId(tasks["run_all"].job_id or ""))
