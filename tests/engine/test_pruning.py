"""Pruning forgets what nobody needs: plans, reuse and live RAPs are as before."""

from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.core.codes import JobState
from controller.core.errors import Forbidden, NotFound, Rejected
from controller.core.model import RapId, Verb
from controller.engine.pruning import Pruned
from controller.engine.results import Created
from controller.store import jobs
from controller.store.db import Database
from tests.engine.conftest import Harness, Study
from tests.factories import NOW, principal

ALL_VERBS = frozenset(Verb)
MANAGER = principal("test", "other", verbs=ALL_VERBS)
MONTH = timedelta(days=30)
DAY = 86_400.0
TABLES = ("rap", "job", "job_need", "job_event", "task", "output", "job_log", "job_sample")


async def prune(harness: Harness, older_than: timedelta = MONTH, *, dry_run: bool = False) -> Pruned:
    return await harness.engine.prune(MANAGER, "test", older_than=older_than, after=0, dry_run=dry_run)


async def counts(database: Database) -> dict[str, int]:
    async with database.connection() as tx:
        return {table: await tx.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}


async def ran(harness: Harness, study: Study, *actions: str, **changes: Any) -> str:
    """A RAP that has run to its end."""
    created = await harness.create(study.request(*actions, **changes))
    await harness.run_all()
    return created.rap_id


async def test_a_superseded_rap_goes_with_everything_and_the_newest_only_loses_its_history(
    harness: Harness, study: Study, database: Database
) -> None:
    old = await ran(harness, study, "extract")
    await ran(harness, study, "extract")
    harness.clock.advance(31 * DAY)
    done = await prune(harness)
    assert (done.counts.raps, done.counts.jobs, done.counts.kept, done.next_after) == (1, 1, 1, None)
    assert done.counts.tasks == 2
    left = await counts(database)
    assert (left["rap"], left["job"], left["job_event"], left["task"]) == (1, 1, 0, 0)
    report = await harness.engine.status(MANAGER, [RapId(old)])
    assert report.unrecognised == (old,)
    again = await prune(harness)
    assert (again.counts.raps, again.counts.events, again.counts.tasks, again.counts.kept) == (0, 0, 0, 1)


async def test_a_dry_run_counts_the_same_and_changes_nothing(
    harness: Harness, study: Study, database: Database
) -> None:
    for _ in range(3):
        await ran(harness, study, "run_all", force_run_dependencies=True)
    harness.clock.advance(31 * DAY)
    before = await counts(database)
    counted = await prune(harness, dry_run=True)
    assert await counts(database) == before
    done = await prune(harness)
    assert (done.counts.raps, done.dry_run, counted.dry_run) == (2, False, True)
    assert counted == evolve(done, dry_run=True)
    after = await counts(database)
    assert before["job"] - after["job"] == done.counts.jobs
    assert before["job_event"] - after["job_event"] == done.counts.events
    assert before["output"] - after["output"] == done.counts.outputs


async def test_young_and_live_raps_stay_as_they_are(harness: Harness, study: Study, database: Database) -> None:
    live = await harness.create(study.request("extract"))
    harness.clock.advance(31 * DAY)
    await ran(harness, study, "query")
    before = await counts(database)
    assert await prune(harness) == Pruned(backend="test", cutoff=harness.clock.now() - MONTH, dry_run=False)
    assert await counts(database) == before
    assert set(await harness.codes(live.rap_id)) == {"extract"}


async def test_a_need_of_a_waiting_job_stays(harness: Harness, study: Study, database: Database) -> None:
    """An edge of a pending job keeps what it points at, whatever supersedes it."""
    old = await ran(harness, study, "extract")
    await ran(harness, study, "extract")
    waiting = await harness.create(study.request("extract"))
    async with database.connection() as tx:
        await tx.execute(
            "INSERT INTO job_need SELECT w.id, o.id FROM job w, job o WHERE w.rap_id = $1 AND o.rap_id = $2",
            waiting.rap_id,
            old,
        )
    harness.clock.advance(31 * DAY)
    done = await prune(harness)
    assert (done.counts.raps, done.counts.kept) == (0, 2)
    async with database.connection() as tx:
        await tx.execute("DELETE FROM job_need WHERE job_id IN (SELECT id FROM job WHERE rap_id = $1)", waiting.rap_id)
    assert (await prune(harness)).counts.raps == 1


async def test_an_unconfirmed_stop_stays_with_its_rap(harness: Harness, study: Study, database: Database) -> None:
    await ran(harness, study, "extract")
    created = await harness.create(study.request("extract"))
    await harness.settle()
    await harness.claim()
    await harness.engine.cancel(MANAGER, created.rap_id, ["extract"])
    harness.clock.advance(31 * DAY)
    done = await prune(harness)
    assert (done.counts.raps, done.counts.kept) == (0, 2)
    async with database.connection() as tx:
        assert await tx.fetch("SELECT type, active FROM task") == [("canceljob", True)]


async def test_a_cancelled_job_is_nobodys_memory(harness: Harness, study: Study) -> None:
    cancelled = await ran(harness, study, "extract")
    await harness.engine.cancel(MANAGER, RapId(cancelled), ["extract"])
    harness.clock.advance(31 * DAY)
    done = await prune(harness)
    assert (done.counts.raps, done.counts.kept) == (1, 0)


async def test_what_was_given_to_a_running_job_stays(harness: Harness, study: Study, database: Database) -> None:
    old = await ran(harness, study, "extract")
    await ran(harness, study, "extract")
    await harness.create(study.request("extract", workspace="elsewhere"))
    await harness.settle()
    async with database.connection() as tx:
        given = await tx.fetchval("SELECT id FROM job WHERE rap_id = $1", old)
        definition = {"input_job_ids": [given]}
        await tx.execute("UPDATE task SET definition = $1 WHERE active", definition)
    harness.clock.advance(31 * DAY)
    assert (await prune(harness)).counts.raps == 0


async def test_a_pruned_id_is_a_new_one(harness: Harness, study: Study) -> None:
    request = study.request("extract")
    await harness.create(request)
    await harness.run_all()
    await ran(harness, study, "extract")
    harness.clock.advance(31 * DAY)
    await prune(harness)
    assert isinstance(await harness.engine.create_rap(MANAGER, request), Created)


async def test_long_work_is_cut_into_calls(harness: Harness, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.engine.pruning._PAGE", 2)
    monkeypatch.setattr("controller.engine.pruning._CALL_SECONDS", 0.0)
    for _ in range(5):
        await ran(harness, study, "extract")
    harness.clock.advance(31 * DAY)
    after, raps = 0, []
    while True:
        done = await harness.engine.prune(MANAGER, "test", older_than=MONTH, after=after, dry_run=False)
        raps.append(done.counts.raps)
        if done.next_after is None:
            break
        after = done.next_after
    assert raps == [2, 2, 0]


async def test_the_loop_prunes_to_the_end(harness: Harness, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.engine.pruning._PAGE", 1)
    for _ in range(4):
        await ran(harness, study, "extract")
    harness.clock.advance(31 * DAY)
    done = await harness.engine.prune_by_setting("test", MONTH)
    assert (done.counts.raps, done.counts.kept, done.next_after) == (3, 1, None)


@pytest.mark.parametrize(
    ("who", "backend", "age", "error"),
    [
        (principal("other", verbs=frozenset(Verb)), "test", MONTH, NotFound),
        (principal("test"), "test", MONTH, Forbidden),
        (MANAGER, "nowhere", MONTH, NotFound),
        (MANAGER, "test", timedelta(hours=23), Rejected),
        (MANAGER, "test", timedelta(days=40_000), Rejected),
    ],
)
async def test_who_may_and_how_young(
    harness: Harness, who: Any, backend: str, age: timedelta, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await harness.engine.prune(who, backend, older_than=age, after=0, dry_run=False)


# Equivalence: random histories, written as rows, are asked the same before and after.

ACTIONS = ("extract", "tidy", "plot")
WORKSPACES = ("study", "second")

a_job = st.tuples(
    st.sampled_from(ACTIONS),
    st.sampled_from(("succeeded", "failed", "running", "pending")),
    st.booleans(),
)
a_rap = st.tuples(
    st.sampled_from(WORKSPACES),
    st.sampled_from((10, 29, 31, 400)),
    st.lists(a_job, min_size=1, max_size=3, unique_by=lambda job: job[0]),
)
CODES = {"succeeded": "succeeded", "failed": "nonzero_exit", "running": "executing", "pending": "created"}

INSERT_RAP = """
INSERT INTO rap (id, dialect, backend, workspace, repo_url, branch, commit, database_name, requested_actions,
                 codelists_ok, force_run_dependencies, created_by, project, orgs, analysis_scope, traceparent,
                 created_at)
VALUES ($1, 'rap', 'test', $2, '/study', 'main', '', 'default', ARRAY['run_all'], true, false, '', '',
        ARRAY[]::text[], '{}', '', $3)"""
INSERT_JOB = """
INSERT INTO job (id, rap_id, position, backend, workspace, action, kind, run_command, requires_db, needs, output_spec,
                 repo_url, commit, branch, analysis_scope, weight, traceparent, created_at, state, code, message,
                 updated_at, code_changed_at, started_at, completed_at, attempt, cancelled)
VALUES ($1, $2, $3, 'test', $4, $5, 'run', 'python:v2 a.py', false, ARRAY[]::text[], '{}', '/study', '', 'main', '{}',
        1, '', $6, $7, $8, '', $6, $6, $6, $9, 1, $10)"""


async def write(tx: Any, history: list[Any]) -> None:
    """The history as rows; older RAPs first, as they were made."""
    await tx.execute("TRUNCATE rap, job, job_need, job_event, task, output, job_log, job_sample CASCADE")
    for number, (workspace, age, made) in enumerate(sorted(history, key=lambda rap: -rap[1])):
        at, rap_id = NOW - timedelta(days=age), f"{number:016d}"
        await tx.execute(INSERT_RAP, rap_id, workspace, at)
        for place, (action, state, cancelled) in enumerate(made):
            over = state in ("succeeded", "failed")
            await tx.execute(
                INSERT_JOB,
                f"{number * 10 + place:016d}",
                rap_id,
                place,
                workspace,
                action,
                at,
                state,
                CODES[state],
                at if over else None,
                cancelled and over,
            )
    await tx.execute(
        "INSERT INTO job_event (job_id, at, attempt, state, code, message) "
        "SELECT id, created_at, 1, state, code, '' FROM job"
    )


async def memory(tx: Any) -> Any:
    """All that planning asks of a workspace."""
    return [await jobs.latest(tx, "test", workspace, ACTIONS) for workspace in WORKSPACES]


async def observed(harness: Harness, live: list[str]) -> Any:
    """What planning and portals see: now, and after any one job that is not old is cancelled."""
    seen: list[Any] = [await harness.engine.status(MANAGER, [RapId(each) for each in live])]
    async with harness.context.db.connection() as tx:
        seen.append(await memory(tx))
        young = await tx.fetch(
            "SELECT id FROM job WHERE completed_at IS NULL OR completed_at >= $1 ORDER BY seq", NOW - MONTH
        )
        for row in young:
            change = tx.transaction()
            await change.start()
            await tx.execute("UPDATE job SET cancelled = true WHERE id = $1", row["id"])
            seen.append(await memory(tx))
            await change.rollback()
    return seen


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(a_rap, min_size=1, max_size=8))
async def test_planning_and_live_raps_are_the_same_before_and_after(harness: Harness, history: list[Any]) -> None:
    async with harness.context.db.connection() as tx:
        await write(tx, history)
        live = [
            row["rap_id"]
            for row in await tx.fetch(
                "SELECT DISTINCT rap_id FROM job WHERE state IN ('pending', 'running') ORDER BY 1"
            )
        ]
    before = await observed(harness, live)
    await prune(harness)
    assert await observed(harness, live) == before
    assert (await prune(harness)).counts.raps == 0


async def test_the_example_of_a_cancel_that_brings_an_old_result_back(harness: Harness, study: Study) -> None:
    """A newer job that is not old yet does not supersede: a cancel of it would make the action run again."""
    await ran(harness, study, "extract")
    harness.clock.advance(31 * DAY)
    newer = await ran(harness, study, "extract")
    await prune(harness)
    await harness.engine.cancel(MANAGER, RapId(newer), ["extract"])
    async with harness.context.db.connection() as tx:
        found = await jobs.latest(tx, "test", "study", ["extract"])
    assert found["extract"].state is JobState.SUCCEEDED
