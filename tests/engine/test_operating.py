"""Pause, database maintenance, reboot: what operators' commands do to jobs and flags (sections 3.3, 3.6, 3.8)."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import asyncpg
import pytest
import structlog

from common.protocol import TaskOffer, Verdict
from controller.core.codes import MESSAGE, StatusCode
from controller.core.errors import Forbidden, NotFound, Rejected
from controller.core.model import Verb
from controller.engine import operating
from controller.engine.operating import FlagView, RebootStatus
from controller.store import backends
from tests.engine.conftest import Harness, Study
from tests.factories import operator, principal

OPERATOR = operator("test")
PORTAL = principal("test")
NEVER = dict.fromkeys(operating.FLAGS)

Command = Callable[[Harness, Any, str], Awaitable[Any]]
COMMANDS: dict[str, Command] = {
    "pause": lambda harness, who, backend: harness.engine.pause(who, backend),
    "unpause": lambda harness, who, backend: harness.engine.unpause(who, backend),
    "maintenance": lambda harness, who, backend: harness.engine.start_maintenance(who, backend, disable_checks=True),
    "end of maintenance": lambda harness, who, backend: harness.engine.end_maintenance(who, backend),
    "reboot": lambda harness, who, backend: harness.engine.prepare_for_reboot(who, backend),
    "reboot status": lambda harness, who, backend: harness.engine.reboot_status(who, backend),
    "flags": lambda harness, who, backend: harness.engine.flags(who, [backend]),
}


def values(found: Sequence[FlagView]) -> dict[str, str | None]:
    return {flag.id: flag.value for flag in found}


def times(found: Sequence[FlagView]) -> dict[str, datetime | None]:
    return {flag.id: flag.changed_at for flag in found}


async def read(harness: Harness) -> Sequence[FlagView]:
    return await harness.engine.flags(OPERATOR)


async def running_job(harness: Harness, study: Study, action: str = "extract", *held: TaskOffer) -> Any:
    """A RAP of one job, in the hands of the agent; (RAP id, task)."""
    created = await harness.create(study.request(action))
    await harness.settle()
    (task,) = await harness.claim(holding=held)
    await harness.report(task, "executing")
    return created.rap_id, task


class TestWho:
    @pytest.mark.parametrize("name", COMMANDS)
    async def test_a_portal_may_not_manage(self, harness: Harness, name: str) -> None:
        with pytest.raises(Forbidden, match="may use backend 'test', but not manage it"):
            await COMMANDS[name](harness, PORTAL, "test")
        assert values(await read(harness)) == NEVER

    @pytest.mark.parametrize("name", COMMANDS)
    @pytest.mark.parametrize("backend", ["other", "nowhere", "", "te\0st"])
    async def test_a_foreign_backend_looks_unknown(self, harness: Harness, name: str, backend: str) -> None:
        with pytest.raises(NotFound, match="There is no backend"):
            await COMMANDS[name](harness, OPERATOR, backend)

    async def test_flags_of_all_backends_need_the_verb_too(self, harness: Harness) -> None:
        with pytest.raises(Forbidden):
            await harness.engine.flags(PORTAL)

    async def test_flags_are_listed_by_backend(self, harness: Harness) -> None:
        both = principal("other", "test", verbs=frozenset({Verb.MANAGE}))
        await harness.engine.pause(both, "test")
        found = await harness.engine.flags(both)
        assert [flag.backend for flag in found] == ["other"] * 4 + ["test"] * 4
        assert [flag.backend for flag in found if flag.value] == ["test"]


class TestPause:
    async def test_pending_jobs_wait_and_running_jobs_run_on(self, harness: Harness, study: Study) -> None:
        first, task = await running_job(harness, study)
        done = await harness.engine.pause(OPERATOR, "test")
        assert done.changed == ("paused",)
        assert values(done.flags) == NEVER | {"paused": "true"}
        second = await harness.create(study.request("query"))
        await harness.settle()
        jobs = await harness.jobs(first, second.rap_id)
        assert jobs["query"].progress.code is StatusCode.WAITING_PAUSED
        assert jobs["query"].progress.message == MESSAGE[StatusCode.WAITING_PAUSED]
        assert jobs["extract"].progress.code is StatusCode.EXECUTING
        await harness.finish(task)
        assert (await harness.codes(first))["extract"] == "succeeded"
        done = await harness.engine.unpause(OPERATOR, "test")
        assert (done.changed, values(done.flags)) == (("paused",), NEVER)
        await harness.settle()
        assert (await harness.codes(second.rap_id))["query"] == "initiated"

    async def test_times_change_with_values_only(self, harness: Harness) -> None:
        on = harness.clock.now()
        await harness.engine.pause(OPERATOR, "test")
        harness.clock.advance(60)
        again = await harness.engine.pause(OPERATOR, "test")
        assert again.changed == ()
        assert times(again.flags)["paused"] == on
        off = harness.clock.now()
        await harness.engine.unpause(OPERATOR, "test")
        harness.clock.advance(60)
        again = await harness.engine.unpause(OPERATOR, "test")
        assert again.changed == ()
        (view,) = await harness.engine.backends(OPERATOR)
        assert (view.paused, view.paused_since, times(again.flags)["paused"]) == (False, off, off)

    async def test_unpausing_what_never_was_paused_sets_no_time(self, harness: Harness) -> None:
        done = await harness.engine.unpause(OPERATOR, "test")
        assert done.changed == ()
        assert times(done.flags) == NEVER
        (view,) = await harness.engine.backends(OPERATOR)
        assert view.paused_since is None

    async def test_a_change_wakes_the_scheduler_and_a_repetition_does_not(self, harness: Harness) -> None:
        heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        connection = await asyncpg.connect(harness.context.db.dsn)
        try:
            for channel in (backends.SCHEDULE_CHANNEL, backends.TASKS_CHANNEL):
                await connection.add_listener(channel, lambda _c, _pid, name, slug: heard.put_nowait((name, slug)))
            await harness.engine.pause(OPERATOR, "test")
            await harness.engine.pause(OPERATOR, "test")
            await harness.engine.prepare_for_reboot(OPERATOR, "test")
            await harness.engine.unpause(OPERATOR, "test")
            async with harness.context.db.connection() as tx:
                await backends.notify.run(tx, channel=backends.TASKS_CHANNEL, backend="the end")
            told = [await heard.get()]
            while told[-1][1] != "the end":
                told.append(await heard.get())
        finally:
            await connection.close()
        assert told[:-1] == [(backends.SCHEDULE_CHANNEL, "test")] * 2

    async def test_who_changed_what_is_logged_and_a_repetition_is_not(self, harness: Harness) -> None:
        with structlog.testing.capture_logs() as entries:
            await harness.engine.pause(OPERATOR, "test")
            await harness.engine.pause(OPERATOR, "test")
            await harness.engine.prepare_for_reboot(OPERATOR, "test")
        (entry,) = entries
        said = {"event": "flag_changed", "flag": "paused", "value": "true", "backend": "test", "principal": "portal"}
        assert entry == said | {"log_level": "info"}


class TestSingleFlags:
    async def test_any_value_that_a_flag_can_have_is_set(self, harness: Harness) -> None:
        done = await harness.engine.set_flags(OPERATOR, "test", {"mode": "", "paused": "true"})
        assert set(done.changed) == {"mode", "paused"}
        assert {flag.id: flag.value for flag in done.flags} | {"mode": "", "paused": "true"} == {
            flag.id: flag.value for flag in done.flags
        }
        assert (await harness.engine.set_flags(OPERATOR, "test", {"paused": "true"})).changed == ()

    @pytest.mark.parametrize(
        ("wanted", "words"), [({"pausd": "true"}, "no flag 'pausd'"), ({"mode": "", "paused": "on"}, "can be 'true'")]
    )
    async def test_what_makes_no_sense_changes_nothing(self, harness: Harness, wanted: Any, words: str) -> None:
        with pytest.raises(Rejected, match=words):
            await harness.engine.set_flags(OPERATOR, "test", wanted)
        assert times(await read(harness)) == NEVER

    async def test_a_portal_may_not(self, harness: Harness) -> None:
        with pytest.raises(Forbidden):
            await harness.engine.set_flags(PORTAL, "test", {"paused": "true"})


class TestMaintenance:
    async def test_database_jobs_are_sent_back_and_others_carry_on(self, harness: Harness, study: Study) -> None:
        rap, task = await running_job(harness, study, "query")
        other, beside = await running_job(harness, study, "extract", task)
        on = harness.clock.now()
        done = await harness.engine.start_maintenance(OPERATOR, "test", disable_checks=False)
        assert done.changed == ("mode", "manual-db-maintenance")
        assert values(done.flags) == NEVER | {"mode": "db-maintenance", "manual-db-maintenance": "on"}
        await harness.settle()
        codes = await harness.codes(rap, other)
        assert codes == {"query": "waiting_db_maintenance", "extract": "executing"}
        (cancel,) = await harness.claim(holding=[task, beside])
        assert cancel.id == f"{task.id}-cancel"
        (view,) = await harness.engine.backends(OPERATOR)
        assert (view.db_maintenance, view.db_maintenance_type, view.db_maintenance_since) == (True, "manual", on)
        harness.clock.advance(60)
        off = harness.clock.now()
        done = await harness.engine.end_maintenance(OPERATOR, "test")
        assert values(done.flags) == NEVER
        (view,) = await harness.engine.backends(OPERATOR)
        assert (view.db_maintenance, view.db_maintenance_type, view.db_maintenance_since) == (False, None, off)
        await harness.settle()
        (again,) = await harness.claim(holding=[cancel, beside])
        assert again.id == f"{task.job_id}-002"

    async def test_on_without_the_option_takes_disabled_checks_back(self, harness: Harness) -> None:
        since = harness.clock.now()
        done = await harness.engine.start_maintenance(OPERATOR, "test", disable_checks=True)
        assert values(done.flags)["db-maintenance-checks-disabled"] == "true"
        harness.clock.advance(60)
        done = await harness.engine.start_maintenance(OPERATOR, "test", disable_checks=False)
        assert done.changed == ("db-maintenance-checks-disabled",)
        assert values(done.flags)["db-maintenance-checks-disabled"] is None
        assert times(done.flags)["mode"] == since

    async def test_off_leaves_nothing_behind(self, harness: Harness) -> None:
        await harness.engine.start_maintenance(OPERATOR, "test", disable_checks=True)
        done = await harness.engine.end_maintenance(OPERATOR, "test")
        assert (set(done.changed), values(done.flags)) == (set(operating.FLAGS) - {"paused"}, NEVER)
        assert (await harness.engine.end_maintenance(OPERATOR, "test")).changed == ()

    async def test_leaving_manual_mode_is_null_and_a_check_makes_it_empty(self, harness: Harness) -> None:
        """Section 3.6: null and the empty text are two values, so `since` moves twice."""
        await harness.engine.start_maintenance(OPERATOR, "test", disable_checks=False)
        await harness.engine.end_maintenance(OPERATOR, "test")
        harness.clock.advance(60)
        await harness.set_flag("mode", "")
        (view,) = await harness.engine.backends(OPERATOR)
        assert view.db_maintenance_since == harness.clock.now()

    async def test_a_scheduled_maintenance_becomes_a_manual_one(self, harness: Harness) -> None:
        scheduled = harness.clock.now()
        await harness.set_flag("mode", "db-maintenance")
        harness.clock.advance(60)
        done = await harness.engine.start_maintenance(OPERATOR, "test", disable_checks=False)
        assert done.changed == ("manual-db-maintenance",)
        (view,) = await harness.engine.backends(OPERATOR)
        assert (view.db_maintenance_type, view.db_maintenance_since) == ("manual", scheduled)

    async def test_pause_comes_before_maintenance(self, harness: Harness, study: Study) -> None:
        """Section 3.3: a running database job is sent back even so, and then waits for the pause."""
        rap, _ = await running_job(harness, study, "query")
        await harness.engine.pause(OPERATOR, "test")
        await harness.engine.start_maintenance(OPERATOR, "test", disable_checks=False)
        await harness.settle()
        detail = await harness.engine.rap_detail(OPERATOR, rap)
        assert [entry.code.value for entry in detail.jobs[0].history][-2:] == ["waiting_db_maintenance", "paused"]
        await harness.engine.unpause(OPERATOR, "test")
        await harness.settle()
        assert (await harness.codes(rap))["query"] == "waiting_db_maintenance"


class TestReboot:
    async def test_running_jobs_wait_for_the_reboot_and_start_anew(self, harness: Harness, study: Study) -> None:
        rap, task = await running_job(harness, study, "extract")
        pending = await harness.create(study.request("analyse", workspace="another"))
        done = await harness.engine.prepare_for_reboot(OPERATOR, "test")
        assert (done.changed, done.jobs) == (("paused",), (task.job_id,))
        assert done.status == RebootStatus(
            backend="test", paused=True, running=0, cancelling=1, unconfirmed=(harness.agent,)
        )
        await harness.settle()
        job = (await harness.jobs(rap))["extract"]
        assert job.progress.code is StatusCode.WAITING_ON_REBOOT
        assert job.progress.message == MESSAGE[StatusCode.WAITING_ON_REBOOT]
        assert job.progress.started_at is None
        assert set((await harness.codes(pending.rap_id)).values()) == {"paused"}

        (cancel,) = await harness.claim()
        assert (cancel.type, cancel.id) == ("canceljob", f"{task.id}-cancel")
        assert await harness.finish(task) is not Verdict.APPLIED, "a result of a void attempt comes too late"
        assert not (await harness.engine.reboot_status(OPERATOR, "test")).safe
        await harness.finish(cancel)
        status = await harness.engine.reboot_status(OPERATOR, "test")
        assert (status, status.safe) == (RebootStatus(backend="test", paused=True, running=0, cancelling=0), True)

        await harness.engine.unpause(OPERATOR, "test")
        assert not (await harness.engine.reboot_status(OPERATOR, "test")).safe, "something may start"
        await harness.settle()
        again = next(each for each in await harness.claim() if each.job_id == task.job_id)
        assert (again.id, again.attempt) == (f"{task.job_id}-002", 2)
        await harness.finish(again)
        assert (await harness.codes(rap))["extract"] == "succeeded"

    async def test_again_changes_nothing(self, harness: Harness, study: Study) -> None:
        await running_job(harness, study)
        first = await harness.engine.prepare_for_reboot(OPERATOR, "test")
        since = times(await read(harness))["paused"]
        harness.clock.advance(60)
        again = await harness.engine.prepare_for_reboot(OPERATOR, "test")
        assert (again.changed, again.jobs, again.status) == ((), (), first.status)
        assert times(await read(harness))["paused"] == since

    async def test_a_paused_backend_still_stops_what_runs(self, harness: Harness, study: Study) -> None:
        rap, _ = await running_job(harness, study)
        await harness.engine.pause(OPERATOR, "test")
        assert (await harness.engine.reboot_status(OPERATOR, "test")).running == 1
        done = await harness.engine.prepare_for_reboot(OPERATOR, "test")
        assert (done.changed, len(done.jobs)) == ((), 1)
        assert (await harness.codes(rap))["extract"] == "waiting_on_reboot"

    async def test_other_backends_are_left_alone(self, harness: Harness, study: Study) -> None:
        here, _ = await running_job(harness, study)
        there = await harness.create(study.request("extract", backend="other"))
        await harness.settle("other")
        await harness.engine.prepare_for_reboot(OPERATOR, "test")
        assert (await harness.jobs(there.rap_id))["extract"].progress.code is StatusCode.INITIATED
        assert (await harness.codes(here))["extract"] == "waiting_on_reboot"

    async def test_a_job_of_no_agent_yet_is_sent_back_too(self, harness: Harness, study: Study) -> None:
        created = await harness.create(study.request("extract"))
        await harness.settle()
        done = await harness.engine.prepare_for_reboot(OPERATOR, "test")
        assert len(done.jobs) == 1
        offered = await harness.claim()
        assert [task.type for task in offered] == ["canceljob"]
        assert (await harness.codes(created.rap_id))["extract"] == "waiting_on_reboot"

    async def test_a_cancel_beats_the_reboot(self, harness: Harness, study: Study) -> None:
        rap, _ = await running_job(harness, study)
        await harness.engine.prepare_for_reboot(OPERATOR, "test")
        await harness.engine.cancel(PORTAL, rap, ["extract"])
        await harness.engine.unpause(OPERATOR, "test")
        await harness.settle()
        assert (await harness.codes(rap))["extract"] == "cancelled_by_user"

    @pytest.mark.parametrize("attempt", range(5))
    async def test_a_report_in_between_is_either_before_or_too_late(
        self, harness: Harness, study: Study, attempt: int
    ) -> None:
        rap, task = await running_job(harness, study)
        done, verdict = await asyncio.gather(harness.engine.prepare_for_reboot(OPERATOR, "test"), harness.finish(task))
        code = (await harness.codes(rap))["extract"]
        expected = ("succeeded", 0) if verdict is Verdict.APPLIED else ("waiting_on_reboot", 1)
        assert (code, len(done.jobs)) == expected
