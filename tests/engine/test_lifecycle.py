"""A RAP from its creation to its end, as agents and portals see it."""

import asyncio
from typing import Any

import pytest

from common.ids import job_id
from common.protocol import Held, ReleaseRequest, Verdict
from controller.core.codes import JobState
from controller.core.errors import BackendNotAllowed, Conflict, NotFound, Rejected
from controller.core.model import RapId, Verb
from controller.core.retry import DEFAULT
from controller.engine.results import Created, NoChange, NothingToDo
from tests.engine.conftest import Harness, Study, limited, listening
from tests.factories import TRACEPARENT, principal


async def test_a_diamond_runs_in_the_order_of_its_needs(harness: Harness, study: Study) -> None:
    created = await harness.create(study.request("report"))
    assert created.count == 4
    ran = await harness.run_all()
    ids = {action: job_id(created.rap_id, action) for action in ("extract", "analyse", "count", "report")}
    assert ran[0] == ids["extract"]
    assert ran[-1] == ids["report"]
    assert sorted(ran) == sorted(ids.values())
    assert set((await harness.codes(created.rap_id)).values()) == {"succeeded"}


async def test_dependants_wait_until_their_last_need_is_met(harness: Harness, study: Study) -> None:
    created = await harness.create(study.request("report"))
    await harness.settle()
    assert await harness.codes(created.rap_id) == {
        "extract": "initiated",
        "analyse": "waiting_on_dependencies",
        "count": "waiting_on_dependencies",
        "report": "waiting_on_dependencies",
    }
    await harness.finish((await harness.claim())[0])
    await harness.settle()
    analyse, count = await harness.claim()
    await harness.finish(analyse)
    await harness.settle()
    assert (await harness.codes(created.rap_id))["report"] == "waiting_on_dependencies"
    await harness.finish(count)
    await harness.settle()
    assert (await harness.codes(created.rap_id))["report"] == "initiated"


async def test_a_failure_fails_everything_downstream_in_one_pass(harness: Harness, study: Study) -> None:
    created = await harness.create(study.request("report"))
    await harness.settle()
    await harness.finish((await harness.claim())[0], exit_code=1)
    await harness.engine.schedule("test")
    codes = await harness.codes(created.rap_id)
    assert codes == {
        "extract": "nonzero_exit",
        "analyse": "dependency_failed",
        "count": "dependency_failed",
        "report": "dependency_failed",
    }


async def test_history_tells_every_transition_in_order(harness: Harness, study: Study) -> None:
    created = await harness.create(study.request("extract"))
    await harness.settle()
    (task,) = await harness.claim()
    for stage in ("preparing", "prepared", "executing", "executing", "finalizing"):
        harness.clock.advance(1)
        await harness.report(task, stage)
    await harness.finish(task)
    detail = await harness.engine.rap_detail(principal(), created.rap_id)
    (job,) = detail.jobs
    assert [entry.code.value for entry in job.history] == [
        "created",
        "initiated",
        "preparing",
        "prepared",
        "executing",
        "finalizing",
        "succeeded",
    ]
    assert [entry.at for entry in job.history] == sorted(entry.at for entry in job.history)
    assert (job.agent, job.exit_code) == ("agent-1", "0")


async def test_metrics_outputs_and_traces_come_with_the_job(harness: Harness, study: Study) -> None:
    request = study.request("extract", traceparent=TRACEPARENT)
    await harness.create(request)
    await harness.settle()
    (task,) = await harness.claim()
    assert task.traceparent is not None
    assert task.traceparent[3:35] == TRACEPARENT[3:35]
    assert task.traceparent != TRACEPARENT
    output = {"path": "output/rows.csv", "level": "highly_sensitive", "size": 7, "sha256": "ab" * 32}
    await harness.finish(task, job_metrics={"cpu_mean": 12.5, "note": "no number"}, outputs=[output])
    detail = await harness.engine.job_detail(principal(), harness_job(task))
    assert detail.job.metrics == {"cpu_mean": 12.5}
    assert [(o.path, o.size, o.excluded) for o in detail.outputs] == [("output/rows.csv", 7, False)]
    assert detail.job.spec.traceparent == task.traceparent


def harness_job(task: Any) -> Any:
    return task.job_id


async def test_the_definition_has_exactly_upstreams_keys(harness: Harness, study: Study) -> None:
    await harness.create(study.request("analyse", orgs=("a", "b")))
    await harness.settle()
    (extract,) = await harness.claim()
    await harness.finish(extract)
    await harness.settle()
    (task,) = await harness.claim()
    assert set(task.definition) == {
        *("id", "rap_id", "task_id", "repo_url", "commit", "study", "workspace", "action", "created_at", "image"),
        *("image_sha", "args", "env", "inputs", "input_job_ids", "output_spec", "allow_database_access"),
        *("database_name", "level4_max_csv_rows", "level4_max_filesize", "level4_file_types", "user"),
        *("cpu_count", "memory_limit"),
    }
    assert task.id == f"{task.job_id}-001"
    assert task.definition["image"] == "ghcr.io/opensafely-core/python:v2"
    assert task.definition["args"] == ["python", "analyse.py"]
    assert task.definition["input_job_ids"] == [extract.job_id]
    assert task.definition["output_spec"] == {"output/table.csv": "moderately_sensitive"}
    assert task.attributes == {"user": "researcher", "project": "project", "orgs": "a,b"}


class TestCreate:
    async def test_again_is_no_change(self, harness: Harness, study: Study) -> None:
        request = study.request("report")
        await harness.create(request)
        again = await harness.engine.create_rap(principal(), request)
        assert again == NoChange(rap_id=request.rap_id, count=4)

    async def test_again_with_another_workspace_is_a_conflict(self, harness: Harness, study: Study) -> None:
        request = study.request("extract")
        await harness.create(request)
        other = study.request("extract", rap_id=request.rap_id, workspace="elsewhere")
        with pytest.raises(Conflict, match="inconsistent with request data"):
            await harness.engine.create_rap(principal(), other)

    async def test_simultaneous_equal_creates_make_one_rap(self, harness: Harness, study: Study) -> None:
        request = study.request("report")
        answers = await asyncio.gather(*(harness.engine.create_rap(principal(), request) for _ in range(8)))
        assert sorted(type(answer).__name__ for answer in answers) == ["Created"] + ["NoChange"] * 7
        assert {answer.count for answer in answers if not isinstance(answer, NothingToDo)} == {4}

    async def test_simultaneous_raps_of_one_workspace_never_duplicate_an_action(
        self, harness: Harness, study: Study
    ) -> None:
        requests = [study.request("report") for _ in range(5)]
        answers = await asyncio.gather(*(harness.engine.create_rap(principal(), r) for r in requests))
        assert [type(a) for a in answers].count(Created) == 1
        assert [type(a) for a in answers].count(NothingToDo) == 4

    async def test_nothing_to_do_leaves_no_trace(self, harness: Harness, study: Study) -> None:
        await harness.create(study.request("extract"))
        request = study.request("extract")
        answer = await harness.engine.create_rap(principal(), request)
        assert answer == NothingToDo(
            rap_id=request.rap_id, details="All requested actions were already scheduled to run"
        )
        report = await harness.engine.status(principal(), [request.rap_id])
        assert report.unrecognised == (request.rap_id,)

    async def test_active_jobs_of_other_raps_are_awaited(self, harness: Harness, study: Study) -> None:
        first = await harness.create(study.request("extract"))
        second = await harness.create(study.request("analyse"))
        assert (first.count, second.count) == (1, 1)
        assert await harness.run_all() == [
            job_id(first.rap_id, "extract"),
            job_id(second.rap_id, "analyse"),
        ]

    async def test_a_foreign_or_unknown_backend_is_refused_alike(self, harness: Harness, study: Study) -> None:
        for backend in ("other", "nowhere"):
            with pytest.raises(BackendNotAllowed):
                await harness.engine.create_rap(principal("test"), study.request(backend=backend))
        reader = principal("test", verbs=frozenset({Verb.READ}))
        with pytest.raises(BackendNotAllowed):
            await harness.engine.create_rap(reader, study.request())

    @pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
    async def test_text_that_cannot_be_stored_is_refused_by_name(
        self, harness: Harness, study: Study, text: str
    ) -> None:
        with pytest.raises(Rejected, match="created_by"):
            await harness.engine.create_rap(principal(), study.request(created_by=text))


class TestCancel:
    async def test_pending_and_running_jobs_fail_at_once(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("analyse", "count"))
        await harness.settle()
        (task,) = await harness.claim()
        assert await harness.engine.cancel(principal(), created.rap_id, ["extract", "analyse", "extract"]) == 3
        jobs = await harness.jobs(created.rap_id)
        for action in ("extract", "analyse"):
            assert jobs[action].progress.code.value == "cancelled_by_user"
            assert jobs[action].progress.completed_at is not None
        await harness.settle()
        assert (await harness.codes(created.rap_id))["count"] == "dependency_failed"
        (cancel,) = await harness.claim(holding=[task])
        assert (cancel.id, cancel.type) == (f"{task.id}-cancel", "canceljob")
        assert cancel.definition == {**task.definition, "image_sha": None}
        assert await harness.finish(task) is Verdict.STALE
        assert await harness.report(cancel, "finalized", complete=True) is Verdict.APPLIED
        assert (await harness.codes(created.rap_id))["extract"] == "cancelled_by_user"

    async def test_one_unknown_action_cancels_nothing(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("extract"))
        with pytest.raises(NotFound) as caught:
            await harness.engine.cancel(principal(), created.rap_id, ["extract", "zebra", "ape"])
        assert caught.value.fields["not_found"] == ["ape", "zebra"]
        assert await harness.codes(created.rap_id) == {"extract": "created"}

    async def test_unknown_and_foreign_raps_look_the_same(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("extract"))
        for who, rap_id in ((principal("other"), created.rap_id), (principal(), RapId("n" * 16))):
            with pytest.raises(NotFound, match="No jobs found for rap_id"):
                await harness.engine.cancel(who, rap_id, ["extract"])

    async def test_a_cancelled_success_leaves_the_workspaces_memory(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("extract"))
        await harness.run_all()
        harness.clock.advance(60)
        await harness.engine.cancel(principal(), created.rap_id, ["extract"])
        job = (await harness.jobs(created.rap_id))["extract"]
        assert job.progress.state is JobState.SUCCEEDED
        assert job.progress.completed_at == harness.clock.now()
        again = await harness.create(study.request("analyse"))
        assert set(await harness.codes(again.rap_id)) == {"extract", "analyse"}


class TestReports:
    async def test_late_repeated_and_foreign_reports_change_nothing(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("extract"))
        await harness.settle()
        (task,) = await harness.claim()
        assert await harness.report(task, "executing") is Verdict.APPLIED
        assert await harness.report(task, "preparing") is Verdict.REPEATED
        assert await harness.report(task, "executing", agent="impostor") is Verdict.STALE
        assert await harness.finish(task) is Verdict.APPLIED
        before = await harness.jobs(created.rap_id)
        assert await harness.finish(task, exit_code=1) is Verdict.REPEATED
        assert await harness.jobs(created.rap_id) == before

    async def test_a_senseless_final_report_fails_only_its_job(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("extract", "query"))
        await harness.settle()
        by_action = {task.definition["action"]: task for task in await harness.claim()}
        said: dict[str, Any] = {"nonsense": ["\0", {"a\0": "\ud800"}]}
        verdict = await harness.report(by_action["extract"], "finalized", complete=True, results=said)
        assert verdict is Verdict.INVALID
        assert await harness.finish(by_action["query"]) is Verdict.APPLIED
        assert await harness.codes(created.rap_id) == {"extract": "job_error", "query": "succeeded"}

    async def test_an_error_of_the_platform_is_tried_three_times(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("extract"))
        error = {"error": {"exception": "OSError", "message": "disk full"}}
        for attempt in (1, 2, 3):
            await harness.settle()
            (task,) = await harness.claim()
            assert task.attempt == attempt
            await harness.report(task, "error", complete=True, results=error)
            await harness.settle()
            assert await harness.claim() == ()
            harness.clock.advance(DEFAULT.longest.total_seconds())
        job = (await harness.jobs(created.rap_id))["extract"]
        assert job.progress.code.value == "job_error"
        assert "disk full" in job.progress.message
        detail = await harness.engine.job_detail(principal(), job.id)
        causes = [entry for entry in detail.history if entry.code.value == "waiting_on_new_task"]
        assert [entry.message.endswith("disk full") for entry in causes] == [True, True]

    async def test_resets_that_are_no_faults_use_up_no_attempts(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("extract"))
        for _ in range(5):
            await harness.settle()
            (task,) = await harness.claim()
            held = (Held(task_id=task.id, attempt=task.attempt),)
            await harness.engine.release("test", ReleaseRequest(agent="agent-1", tasks=held))
        await harness.settle()
        (task,) = await harness.claim()
        await harness.report(task, "error", complete=True, results={"error": {"message": "disk full"}})
        assert await harness.codes(created.rap_id) == {"extract": "waiting_on_new_task"}

    async def test_the_task_api_reports_without_a_claim(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("extract"))
        await harness.settle()
        (task,) = await harness.engine.active_tasks("test")
        said: dict[str, Any] = {"stage": "executing", "results": {}, "complete": False, "timestamp_ns": None}
        await harness.engine.update_task("test", task_id=task.id, **said)
        assert await harness.codes(created.rap_id) == {"extract": "executing"}
        with pytest.raises(NotFound):
            await harness.engine.update_task("other", task_id=task.id, **said)


class TestClaims:
    async def test_slots_bound_what_is_claimed(self, harness: Harness, study: Study) -> None:
        await harness.create(study.request("extract", "query"))
        await harness.settle()
        assert await harness.claim(0) == ()
        first = await harness.claim(1)
        assert len(first) == 1
        second = await harness.claim(5, holding=first)
        assert len(second) == 1
        assert first[0].id != second[0].id

    async def test_a_restarted_agent_gets_its_tasks_again_and_others_do_not(
        self, harness: Harness, study: Study
    ) -> None:
        await harness.create(study.request("extract"))
        await harness.settle()
        first = await harness.claim()
        assert await harness.claim(holding=first) == ()
        assert await harness.claim(agent="agent-2") == ()
        assert await harness.claim() == first

    async def test_two_agents_never_get_one_task(self, harness: Harness, study: Study) -> None:
        await harness.create(study.request("extract", "query"))
        await harness.settle()
        got = await asyncio.gather(*(harness.claim(1, agent=f"agent-{n}") for n in range(6)))
        claimed = [task.id for tasks in got for task in tasks]
        assert len(claimed) == len(set(claimed)) == 2

    async def test_a_long_poll_wakes_when_a_job_becomes_ready(self, harness: Harness, study: Study) -> None:
        async with listening(harness):
            poll = asyncio.create_task(harness.claim(wait=30))
            await harness.waiter_arrives()
            await harness.create(study.request("extract"))
            await harness.settle()
            assert len(await poll) == 1

    async def test_closing_answers_long_polls_at_once(self, harness: Harness) -> None:
        poll = asyncio.create_task(harness.claim(wait=30))
        await harness.waiter_arrives()
        harness.engine.close()
        assert await poll == ()

    async def test_what_was_handed_back_starts_again_as_a_new_attempt(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("extract"))
        await harness.settle()
        (task,) = await harness.claim()
        held = (Held(task_id=task.id, attempt=task.attempt),)
        assert (await harness.engine.release("test", ReleaseRequest(agent="impostor", tasks=held))).released == 0
        assert (await harness.engine.release("test", ReleaseRequest(agent="agent-1", tasks=held))).released == 1
        assert await harness.codes(created.rap_id) == {"extract": "waiting_on_new_task"}
        await harness.settle()
        (again,) = await harness.claim()
        assert again.attempt == 2
        assert await harness.finish(task) is Verdict.STALE
        assert await harness.finish(again) is Verdict.APPLIED


class TestModes:
    async def test_pause_holds_what_is_pending_and_lets_running_jobs_finish(
        self, harness: Harness, study: Study
    ) -> None:
        created = await harness.create(study.request("analyse"))
        await harness.settle()
        (task,) = await harness.claim()
        await harness.set_flag("paused", "true")
        await harness.finish(task)
        await harness.settle()
        assert await harness.codes(created.rap_id) == {"extract": "succeeded", "analyse": "paused"}
        await harness.set_flag("paused", None)
        await harness.settle()
        assert (await harness.codes(created.rap_id))["analyse"] == "initiated"

    async def test_maintenance_sends_database_jobs_back_and_later_starts_them_again(
        self, harness: Harness, study: Study
    ) -> None:
        created = await harness.create(study.request("query"))
        await harness.settle()
        (task,) = await harness.claim()
        await harness.set_flag("mode", "db-maintenance")
        await harness.settle()
        job = (await harness.jobs(created.rap_id))["query"]
        assert (job.progress.code.value, job.progress.started_at) == ("waiting_db_maintenance", None)
        (cancel,) = await harness.claim(holding=[task])
        assert cancel.type == "canceljob"
        await harness.set_flag("mode", "")
        await harness.settle()
        (again,) = await harness.claim(holding=[cancel])
        assert again.id == f"{job.id}-002"

    async def test_capacity_is_taken_and_given_back(self, harness: Harness, study: Study) -> None:
        small = limited(harness, 1)
        created = await small.create(study.request("analyse", "count"))
        await small.settle()
        await small.finish((await small.claim())[0])
        await small.settle()
        assert sorted((await small.codes(created.rap_id)).values()) == [
            "initiated",
            "succeeded",
            "waiting_on_workers",
        ]
        await small.finish((await small.claim())[0])
        await small.settle()
        assert sorted((await small.codes(created.rap_id)).values()) == ["initiated", "succeeded", "succeeded"]


class TestWeights:
    async def test_heavy_jobs_take_more_of_the_pool(self, harness: Harness, study: Study) -> None:
        heavy = limited(harness, 3, "[workspace.study]\n'analyse|count' = 2")
        created = await heavy.create(study.request("analyse", "count"))
        await heavy.settle()
        await heavy.finish((await heavy.claim())[0])
        await heavy.settle()
        jobs = await heavy.jobs(created.rap_id)
        waiting = [job for job in jobs.values() if job.progress.state is JobState.PENDING]
        assert [job.progress.message for job in waiting] == ["Waiting on available workers for resource intensive job"]

    async def test_what_never_fits_is_refused_with_its_name(self, harness: Harness, study: Study) -> None:
        small = limited(harness, 1, "[default]\n'.*analyse.py' = 2")
        with pytest.raises(Rejected, match="Action analyse needs 2 workers, and the backend has 1"):
            await small.engine.create_rap(principal(), study.request("analyse"))
        report = await small.engine.status(principal(), [RapId("r" * 16)])
        assert report.jobs == ()


class TestLogs:
    async def test_chunks_join_repeat_and_end_at_the_bound(self, harness: Harness, study: Study) -> None:
        from common.protocol import LogChunk

        await harness.create(study.request("extract"))
        await harness.settle()
        (task,) = await harness.claim()

        async def send(offset: int, text: str) -> tuple[int, bool]:
            chunk = LogChunk(agent="agent-1", task_id=task.id, attempt=1, offset=offset, text=text)
            answer = await harness.engine.append_log("test", chunk)
            return answer.next_offset, answer.accepting

        assert await send(0, "hello ") == (6, True)
        assert await send(0, "hello world") == (11, True)
        assert await send(20, "too early") == (11, True)
        assert await send(11, "!" * 2000) == (1000, False)
        page = await harness.engine.job_log(principal(), harness_job(task), attempt=None, offset=3, limit=9)
        assert (page.text, page.next_offset, page.complete) == ("lo world!", 12, False)

    async def test_only_attempts_have_logs(self, harness: Harness, study: Study) -> None:
        from common.protocol import LogChunk

        created = await harness.create(study.request("extract"))
        await harness.settle()
        await harness.claim()
        await harness.engine.cancel(principal(), created.rap_id, ["extract"])
        (cancel,) = await harness.claim()
        with pytest.raises(NotFound):
            await harness.engine.append_log(
                "test", LogChunk(agent="agent-1", task_id=cancel.id, attempt=1, offset=0, text="x")
            )
