"""Checks of a backend's database on a real one: asked for in passes, answered by agents, felt by jobs (section 3.7)."""

import asyncio
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import attrs
import pytest
from structlog.testing import capture_logs

from common.protocol import ClaimRequest, Held, Report, ReportsRequest, TaskOffer, Verdict
from controller.core.checks import definitions
from controller.core.errors import Rejected
from controller.core.model import Flag, TaskType, Verb
from controller.engine.context import BackendTerms
from controller.engine.facade import Engine
from controller.engine.results import CheckView
from controller.sources.images import Glance
from controller.store import backends, tasks
from tests.engine.conftest import Harness, Study
from tests.factories import NOW, principal

OPERATOR = principal("test", verbs=frozenset({Verb.READ, Verb.RUN, Verb.MANAGE}))
BOTH = definitions("ghcr.io/opensafely-core", status=True, expected_month="202304")
STATUS = {TaskType.DBSTATUS: BOTH[TaskType.DBSTATUS]}
DATA = {TaskType.DBDATACHECK: BOTH[TaskType.DBDATACHECK]}
DAY = 24 * 3600


def checked(harness: Harness, checks: Mapping[TaskType, Mapping[str, Any]] = BOTH) -> Harness:
    """The same engine with checks of backend `test`."""
    terms: BackendTerms = attrs.evolve(harness.context.backends["test"], checks=checks)
    context = attrs.evolve(harness.context, backends={**harness.context.backends, "test": terms})
    return Harness(Engine(context), context, harness.clock)


async def active(harness: Harness) -> list[str]:
    return [task.type.value for task in await harness.engine.active_tasks("test")]


async def answer(harness: Harness, task: TaskOffer, status: str | None) -> Verdict:
    results: dict[str, Any] = {"results": {"status": status}, "error": None}
    if status is None:
        results = {"results": None, "error": {"type": "Unusable", "message": "no database"}}
    return await harness.report(task, "", complete=True, results=results)


async def mode(harness: Harness) -> tuple[str | None, Any]:
    async with harness.context.db.connection() as tx:
        rows = await backends.flags.all(tx, backends=["test"])
    return next(((row.value, row.changed_at) for row in rows if row.id == Flag.MODE), (None, None))


async def ask(harness: Harness, *held: TaskOffer) -> TaskOffer:
    """Have the one check that is due asked for, and take it."""
    await harness.settle()
    (task,) = await harness.claim(slots=0, holding=held)
    return task


class TestAsking:
    async def test_the_tasks_are_what_agents_expect(self, harness: Harness) -> None:
        harness = checked(harness)
        assert (await harness.engine.schedule("test")).next_at is None
        status, data = await harness.engine.active_tasks("test")
        assert re.fullmatch(r"dbstatus-2026-\d\d-\d\d-[0-9a-f]{20}", status.id)
        assert re.fullmatch(r"dbdatacheck-2026-\d\d-\d\d-[0-9a-f]{20}", data.id)
        image = {"image": "ghcr.io/opensafely-core/tpp-database-utils:latest", "image_sha": None}
        assert status.definition == {"database_name": "default", **image}
        assert data.definition == {"hes_expected_activity_month": "202304", **image}
        assert (status.attributes, data.attributes) == ({}, {})

    async def test_old_answers_are_dropped_but_for_the_newest(self, harness: Harness) -> None:
        harness = checked(harness, STATUS)

        async def stored() -> int:
            async with harness.context.db.connection() as tx:
                return int(await tx.fetchval("SELECT count(*) FROM task WHERE type = 'dbstatus' AND NOT active"))

        for days in (0, 3, 3, 3):
            harness.clock.advance(days * DAY)
            await answer(harness, await ask(harness), "")
        assert await stored() == 3
        harness.clock.advance(30 * DAY)
        await ask(harness)
        assert await stored() == 1

    async def test_an_end_in_the_future_of_a_clock_that_was_set_back_is_not_waited_for(self, harness: Harness) -> None:
        harness = checked(harness, STATUS)
        harness.clock.advance(400 * DAY)
        await answer(harness, await ask(harness), "db-maintenance")
        harness.clock.advance(-400 * DAY)
        await answer(harness, await ask(harness), "")
        assert (await mode(harness))[0] == ""
        assert (await harness.engine.schedule("test")).next_at == harness.clock.now() + timedelta(minutes=5)
        assert await active(harness) == []

    async def test_other_backends_are_not_asked(self, harness: Harness) -> None:
        harness = checked(harness)
        await harness.settle("other")
        assert await harness.engine.active_tasks("other") == []

    @pytest.mark.parametrize(("checks", "seconds"), [(STATUS, 300), (DATA, DAY)])
    @pytest.mark.parametrize("status", ["good", None])
    async def test_the_interval_begins_when_the_last_one_ended(
        self, harness: Harness, checks: Mapping[TaskType, Mapping[str, Any]], seconds: float, status: str | None
    ) -> None:
        harness = checked(harness, checks)
        task = await ask(harness)
        harness.clock.advance(20)
        good = "" if task.type == "dbstatus" else "OK"
        assert await answer(harness, task, good if status else None) is Verdict.APPLIED
        ended = harness.clock.now()
        assert (await harness.engine.schedule("test")).next_at == ended + timedelta(seconds=seconds)
        harness.clock.advance(seconds - 1)
        await harness.settle()
        assert await active(harness) == []
        harness.clock.advance(1)
        assert (await ask(harness)).id != task.id

    async def test_several_controllers_ask_once(self, harness: Harness) -> None:
        one, other = checked(harness), checked(harness)
        await asyncio.gather(*(each.engine.schedule("test") for each in (one, other, one, other)))
        assert await active(harness) == ["dbstatus", "dbdatacheck"]

    async def test_a_backend_without_checks_costs_no_statement(
        self, harness: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[object] = []

        class Told:
            async def all(self, *_: object, **values: object) -> list[object]:
                asked.append(values)
                return []

        monkeypatch.setattr(tasks, "rounds", Told())
        await harness.engine.schedule("test")
        assert asked == []
        await checked(harness).engine.schedule("test")
        assert len(asked) == 1

    async def test_agents_that_wait_are_woken(self, harness: Harness) -> None:
        harness = checked(harness, STATUS)
        woken: list[str] = []
        async with harness.context.db.connection() as tx:
            listening: Any = tx

            def hear(_: object, __: object, ___: object, payload: str) -> None:
                woken.append(payload)

            await listening.add_listener(backends.TASKS_CHANNEL, hear)
            await harness.engine.schedule("test")
            await tx.fetchval("SELECT 1")
            assert woken == ["test"]
            await harness.engine.schedule("test")
            await tx.fetchval("SELECT 1")
            assert woken == ["test"]
            await listening.remove_listener(backends.TASKS_CHANNEL, hear)

    async def test_a_setting_that_is_taken_back_calls_the_check_off(self, harness: Harness) -> None:
        await checked(harness).engine.schedule("test")
        await checked(harness, STATUS).engine.schedule("test")
        assert await active(harness) == ["dbstatus"]


class Registry:
    """What stands in for `ImageDigests`: says what a test wants."""

    def __init__(self) -> None:
        self.answer = Glance(at=0, pending=True)
        self.asked: list[str] = []

    def glance(self, image: str) -> Glance:
        self.asked.append(image)
        return self.answer


@pytest.mark.parametrize("digest", ["sha256:abc", None])
async def test_a_registry_is_asked_and_not_waited_for(harness: Harness, digest: str | None) -> None:
    registry: Any = Registry()
    sources = attrs.evolve(harness.context.sources, digests=registry)
    harness = Harness(
        engine=harness.engine, context=attrs.evolve(harness.context, sources=sources), clock=harness.clock
    )
    harness = checked(harness, BOTH)
    assert (await harness.engine.schedule("test")).next_at == NOW + timedelta(seconds=1)
    assert await active(harness) == []
    registry.answer = Glance(at=0, digest=digest)
    await harness.engine.schedule("test")
    assert {task.definition["image_sha"] for task in await harness.engine.active_tasks("test")} == {digest}
    asked = len(registry.asked)
    await harness.engine.schedule("test")
    assert len(registry.asked) == asked


class TestSuppression:
    async def test_disabled_checks_call_the_status_off_and_its_answer_changes_nothing(self, harness: Harness) -> None:
        harness = checked(harness, STATUS)
        task = await ask(harness)
        await harness.engine.start_maintenance(OPERATOR, "test", disable_checks=True)
        await harness.settle()
        assert await active(harness) == []
        request = ClaimRequest(agent="agent-1", slots=0, holding=(Held(task_id=task.id, attempt=1),))
        assert (await harness.engine.claim("test", request)).revoked == (task.id,)
        assert await answer(harness, task, "") is Verdict.STALE
        await harness.engine.update_task(
            "test", task_id=task.id, stage="", results={"results": {"status": ""}}, complete=True, timestamp_ns=None
        )
        assert (await mode(harness))[0] == "db-maintenance"
        await harness.engine.end_maintenance(OPERATOR, "test")
        harness.clock.advance(300)
        await ask(harness)
        assert await answer(harness, task, "db-maintenance") is Verdict.STALE
        assert (await mode(harness))[0] is None

    async def test_manual_maintenance_alone_goes_on_asking(self, harness: Harness) -> None:
        harness = checked(harness, STATUS)
        await harness.engine.start_maintenance(OPERATOR, "test", disable_checks=False)
        await harness.settle()
        assert await active(harness) == ["dbstatus"]

    async def test_data_are_not_checked_during_maintenance(self, harness: Harness) -> None:
        harness = checked(harness)
        await harness.settle()
        status, _ = await harness.claim(slots=0)
        await answer(harness, status, "db-maintenance")
        await harness.settle()
        assert await active(harness) == []
        harness.clock.advance(DAY)
        await harness.settle()
        assert await active(harness) == ["dbstatus"]


class TestHolding:
    async def test_a_silent_agents_check_is_given_to_another(self, harness: Harness) -> None:
        harness = checked(harness, STATUS)
        task = await ask(harness)
        assert (await harness.engine.schedule("test")).next_at == NOW + timedelta(seconds=60)
        harness.clock.advance(60)
        await harness.settle()
        (again,) = await harness.claim(slots=0, agent="agent-2")
        assert again.id == task.id
        assert await answer(harness, task, "db-maintenance") is Verdict.STALE
        assert (await mode(harness))[0] is None
        assert await harness.report(
            task, "", agent="agent-2", complete=True, results={"results": {"status": ""}, "error": None}
        )
        assert (await mode(harness))[0] == ""

    async def test_an_agent_that_renews_keeps_it(self, harness: Harness) -> None:
        harness = checked(harness, STATUS)
        task = await ask(harness)
        harness.clock.advance(59)
        await harness.claim(slots=0, holding=[task])
        harness.clock.advance(59)
        await harness.settle()
        assert await harness.claim(slots=0, agent="agent-2") == ()

    async def test_one_that_is_just_renewed_is_left_for_the_next_pass(self, harness: Harness) -> None:
        harness = checked(harness, STATUS)
        task = await ask(harness)
        harness.clock.advance(60)
        async with harness.context.db.transaction() as tx:
            await tx.execute("SELECT FROM task WHERE id = $1 FOR UPDATE", task.id)
            again = await harness.engine.schedule("test")
        assert again.next_at == harness.clock.now() + timedelta(seconds=1)
        assert await harness.claim(slots=0, agent="agent-2") == ()
        await harness.settle()
        assert len(await harness.claim(slots=0, agent="agent-2")) == 1


class TestMode:
    @pytest.mark.parametrize(
        ("status", "expected"),
        [("db-maintenance", "db-maintenance"), ("db-maintenance;1", "db-maintenance"), ("none;2", ""), ("", "")],
    )
    async def test_the_answer_sets_it(self, harness: Harness, status: str, expected: str) -> None:
        harness = checked(harness, STATUS)
        task = await ask(harness)
        assert await answer(harness, task, status) is Verdict.APPLIED
        assert await mode(harness) == (expected, NOW)

    async def test_an_equal_answer_keeps_the_time(self, harness: Harness) -> None:
        harness = checked(harness, STATUS)
        for _ in range(2):
            await answer(harness, await ask(harness), "db-maintenance")
            harness.clock.advance(300)
        assert await mode(harness) == ("db-maintenance", NOW)

    async def test_no_answer_leaves_it_alone(self, harness: Harness) -> None:
        harness = checked(harness, STATUS)
        await answer(harness, await ask(harness), "db-maintenance")
        harness.clock.advance(300)
        assert await answer(harness, await ask(harness), None) is Verdict.APPLIED
        assert await mode(harness) == ("db-maintenance", NOW)

    async def test_an_answer_that_is_none_is_refused_and_asked_for_again(self, harness: Harness) -> None:
        harness = checked(harness, STATUS)
        task = await ask(harness)
        with capture_logs() as logs:
            assert await answer(harness, task, "canary 42") is Verdict.INVALID
        assert "canary" not in repr(logs)
        assert (await mode(harness))[0] is None
        harness.clock.advance(300)
        task = await ask(harness)
        with pytest.raises(Rejected) as caught:
            await harness.engine.update_task(
                "test",
                task_id=task.id,
                stage="",
                results={"results": {"status": "canary 42"}},
                complete=True,
                timestamp_ns=None,
            )
        assert "canary" not in str(caught.value)
        assert (await mode(harness))[0] is None

    async def test_what_an_operator_set_is_not_overwritten(self, harness: Harness) -> None:
        harness = checked(harness, STATUS)
        await harness.engine.start_maintenance(OPERATOR, "test", disable_checks=False)
        assert await answer(harness, await ask(harness), "") is Verdict.APPLIED
        assert await mode(harness) == ("db-maintenance", NOW)


class TestJobs:
    async def test_maintenance_sends_database_jobs_back_and_its_end_starts_them(
        self, harness: Harness, study: Study
    ) -> None:
        harness = checked(harness, STATUS)
        created = await harness.create(study.request("query"))
        await harness.settle()
        status, job = await harness.claim()
        assert status.type == "dbstatus"
        await harness.report(job, "executing")
        await answer(harness, status, "db-maintenance")
        await harness.settle()
        assert await harness.codes(created.rap_id) == {"query": "waiting_db_maintenance"}
        harness.clock.advance(300)
        await answer(harness, await ask_among(harness), "")
        await harness.settle()
        assert await harness.codes(created.rap_id) == {"query": "initiated"}

    @pytest.mark.parametrize("together", [True, False])
    async def test_a_job_that_fails_by_the_maintenance_waits_for_its_end(
        self, harness: Harness, study: Study, together: bool
    ) -> None:
        """Told of in one batch with the maintenance, or before a pass has sent the job back (section 8, no. 15)."""
        harness = checked(harness, STATUS)
        created = await harness.create(study.request("query"))
        await harness.settle()
        status, job = await harness.claim()
        failure = {"error": False, "exit_code": "5", "status_message": "", "has_unmatched_patterns": False}
        maintenance = {"results": {"status": "db-maintenance"}, "error": None}
        if together:
            await both(harness, (job, failure), (status, maintenance))
        else:
            await harness.report(status, "", complete=True, results=maintenance)
            assert await harness.report(job, "finalized", complete=True, results=failure) is Verdict.APPLIED
        assert await harness.codes(created.rap_id) == {"query": "waiting_db_maintenance"}
        await harness.settle()
        harness.clock.advance(300)
        await answer(harness, await ask(harness), "")
        await harness.settle()
        (again,) = await harness.claim()
        assert again.attempt == 2
        await harness.finish(again, 5)
        assert await harness.codes(created.rap_id) == {"query": "nonzero_exit"}

    async def test_other_jobs_and_successes_are_what_they_are(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("query", "extract"))
        await harness.settle()
        held = {offer.definition["action"]: offer for offer in await harness.claim()}
        await harness.set_flag(Flag.MODE, "db-maintenance")
        await harness.finish(held["extract"], 5)
        await harness.finish(held["query"], 0)
        assert await harness.codes(created.rap_id) == {"query": "succeeded", "extract": "nonzero_exit"}


class TestView:
    async def test_the_last_answers_are_shown(self, harness: Harness) -> None:
        harness = checked(harness)
        assert (await harness.engine.backends(OPERATOR))[0].checks == ()
        await harness.settle()
        status, data = await harness.claim(slots=0)
        await answer(harness, status, "none;1")
        await answer(harness, data, "canary 42")
        (view,) = await harness.engine.backends(OPERATOR)
        assert view.checks == (
            CheckView(kind=TaskType.DBSTATUS, finished_at=NOW, answer="none;1"),
            CheckView(kind=TaskType.DBDATACHECK, finished_at=NOW, answer=None),
        )
        harness.clock.advance(300)
        task = await ask(harness)
        await answer(harness, task, None)
        assert [each.answer for each in (await harness.engine.backends(OPERATOR))[0].checks] == [None, None]

    async def test_a_backend_without_checks_shows_none(self, harness: Harness) -> None:
        other = checked(harness, STATUS)
        await answer(other, await ask(other), "")
        assert (await harness.engine.backends(OPERATOR))[0].checks == ()


async def ask_among(harness: Harness) -> TaskOffer:
    """The status check among what there is to claim."""
    await harness.settle()
    (status, *_) = await harness.claim(slots=0)
    assert status.type == "dbstatus"
    return status


async def both(harness: Harness, *said: tuple[TaskOffer, Mapping[str, Any]]) -> None:
    """Final reports in one batch."""
    reports = tuple(
        Report(task_id=task.id, attempt=task.attempt, stage="", complete=True, results=results)
        for task, results in said
    )
    answers = (await harness.engine.report("test", ReportsRequest(agent="agent-1", reports=reports))).answers
    assert [each.task_id for each in answers] == [task.id for task, _ in said]
    assert {each.verdict for each in answers} == {Verdict.APPLIED}


class TestData:
    async def test_old_data_are_a_warning(self, harness: Harness) -> None:
        harness = checked(harness, DATA)
        with capture_logs() as logs:
            assert await answer(harness, await ask(harness), "FAILED") is Verdict.APPLIED
        (warning,) = [line for line in logs if line["event"] == "data_check_failed"]
        assert (warning["log_level"], warning["backend"]) == ("warning", "test")

    @pytest.mark.parametrize("status", ["OK", None])
    async def test_all_else_is_none(self, harness: Harness, status: str | None) -> None:
        harness = checked(harness, DATA)
        with capture_logs() as logs:
            assert await answer(harness, await ask(harness), status) is Verdict.APPLIED
        assert "data_check_failed" not in [line["event"] for line in logs]

    async def test_an_answer_that_is_none_is_refused(self, harness: Harness) -> None:
        harness = checked(harness, DATA)
        assert await answer(harness, await ask(harness), "db-maintenance") is Verdict.INVALID
