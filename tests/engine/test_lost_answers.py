"""A controller that dies in every use case: just before the commit, and just after it, when the answer is lost.

Before: nothing has changed, and the repetition does all of it. After: the repetition changes nothing more. So whoever
gets no answer may ask again, whatever was asked.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal

import pytest
from attrs import define, evolve

from common import tokens as form
from common.protocol import ClaimRequest, Declaration, Held, LogChunk, ReleaseRequest, Report, ReportsRequest, TaskOffer
from controller.core.errors import Unavailable
from controller.core.model import JobId, RapId, RapRequest, TaskType, Verb
from controller.core.tokens import NewToken
from controller.engine.facade import Engine
from controller.store.db import Database
from controller.store.queries import Tx
from tests.engine.conftest import Harness, Study
from tests.engine.test_checking import BOTH
from tests.factories import operator, principal

When = Literal["before", "after"]
OPERATOR = operator("test")
MASKED = {"lease_expires_at", "last_seen_at", "at", "changed_at"}
"""Heartbeats, and times that the repetition may move."""


class Dying(Database):
    """Ends a transaction as a dying process does: with a rollback, or with a commit unanswered."""

    def __init__(self, real: Database, when: When, *, spare: int) -> None:
        """:param spare: transactions that go well before."""
        vars(self).update(vars(real))
        self._when = when
        self._spare = spare

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        if self._spare > 0:
            self._spare -= 1
            async with super().transaction() as tx:
                yield tx
            return
        async with super().transaction() as tx:
            yield tx
            if self._when == "before":
                raise Unavailable("killed before the commit")
        raise Unavailable("killed after the commit")


@define
class Scene:
    """What the use cases are about: a job that runs, one that waits, one that has failed."""

    harness: Harness
    study: Study
    request: RapRequest
    rap: RapId
    running: TaskOffer
    failed: JobId
    token: NewToken


Step = Callable[[Engine, Scene], Awaitable[Any]]


def said(task: TaskOffer, **fields: Any) -> ReportsRequest:
    report = Report(task_id=task.id, attempt=task.attempt, stage="finalized", **fields)
    return ReportsRequest(agent="agent-1", reports=(report,))


def held(scene: Scene) -> tuple[Held, ...]:
    return (Held(task_id=scene.running.id, attempt=scene.running.attempt),)


DONE = {"error": False, "exit_code": "0", "outputs": [{"path": "a", "level": "b", "size": 1, "sha256": "c" * 64}]}
FAULT = {"error": {"message": "disk full"}}

STEPS: Mapping[str, Step] = {
    "create": lambda engine, scene: engine.create_rap(principal("test"), scene.request),
    "cancel": lambda engine, scene: engine.cancel(principal("test"), scene.rap, ["extract"]),
    "claim": lambda engine, scene: engine.claim("test", ClaimRequest(agent="agent-1", slots=5, holding=held(scene))),
    "release": lambda engine, scene: engine.release("test", ReleaseRequest(agent="agent-1", tasks=held(scene))),
    "declare": lambda engine, _: engine.declare_agent("test", "new", Declaration(version="1", executor="x", slots=1)),
    "final report": lambda engine, scene: engine.report("test", said(scene.running, complete=True, results=DONE)),
    "fault": lambda engine, scene: engine.report("test", said(scene.running, complete=True, results=FAULT)),
    "stage": lambda engine, scene: engine.report("test", said(scene.running)),
    "senseless report": lambda engine, scene: engine.report("test", said(scene.running, complete=True)),
    "log": lambda engine, scene: engine.append_log(
        "test", LogChunk(agent="agent-1", task_id=scene.running.id, attempt=1, offset=0, text="line\n")
    ),
    "task update": lambda engine, scene: engine.update_task(
        "test", task_id=scene.running.id, stage="finalized", results=DONE, complete=True, timestamp_ns=None
    ),
    "pass": lambda engine, _: engine.schedule("test"),
    "take-over": lambda engine, _: engine.take_over("test"),
    "pause": lambda engine, _: engine.pause(OPERATOR, "test"),
    "maintenance": lambda engine, _: engine.start_maintenance(OPERATOR, "test", disable_checks=True),
    "reboot": lambda engine, _: engine.prepare_for_reboot(OPERATOR, "test"),
    "kill": lambda engine, scene: engine.kill(OPERATOR, scene.running.job_id),
    "retry of a running job": lambda engine, scene: engine.retry(OPERATOR, scene.running.job_id, attempt=1),
    "retry of a failed job": lambda engine, scene: engine.retry(OPERATOR, scene.failed),
    "limits": lambda engine, _: engine.set_limits(OPERATOR, "test", {"workers": 1.0}),
    "token": lambda engine, scene: engine.create_token(OPERATOR, scene.token),
    "revoke": lambda engine, _: engine.revoke_token(OPERATOR, "old"),
    "prune": lambda engine, _: engine.prune(OPERATOR, "test", older_than=timedelta(days=1), after=0, dry_run=False),
}


SPARE = {"retry of a failed job": 1}
"""Transactions that only look."""


@pytest.fixture
async def scene(harness: Harness, study: Study) -> Scene:
    """An agent holds `extract`; `analyse` waits for it; `query` failed days ago, twice."""
    checks = {TaskType.DBSTATUS: BOTH[TaskType.DBSTATUS]}
    terms = evolve(harness.context.backends["test"], checks=checks)
    context = evolve(harness.context, backends={**harness.context.backends, "test": terms})
    harness = Harness(Engine(context), context, harness.clock)
    for _ in range(2):
        failed = await harness.create(study.request("query"))
        await harness.settle()
        for task in await harness.claim():
            await harness.finish(task, exit_code=1)
    harness.clock.advance(3 * 24 * 3600)
    created = await harness.create(study.request("analyse"))
    await harness.settle()
    (running,) = [task for task in await harness.claim() if task.type == "runjob"]
    digest, old = form.digest(form.make()), form.digest(form.make())
    grants = {"test": frozenset({Verb.READ})}
    token = NewToken(name="new", digest=digest, grants=grants, lifetime=None)
    await harness.engine.create_token(OPERATOR, evolve(token, name="old", digest=old))
    # For the take-over, the claim and the pass: the agent is silent, another one is there, one job may be claimed and
    # one may start.
    harness.clock.advance(harness.context.lease_seconds + 1)
    await harness.engine.declare_agent("test", "agent-2", Declaration(version="1", executor="x", slots=1))
    await harness.create(study.request("extract", workspace="another"))
    await harness.settle()
    await harness.create(study.request("extract", workspace="yet-another"))
    jobs = await harness.jobs(failed.rap_id)
    request = study.request("report", workspace="third")
    return Scene(harness, study, request, created.rap_id, running, jobs["query"].id, token)


async def rows(database: Database) -> dict[str, list[str]]:
    """Everything that is stored, but for heartbeats and counters."""
    async with database.connection() as tx:
        tables = await tx.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        found = {}
        for (table,) in tables:
            records = await tx.fetch(f"SELECT to_jsonb(t) FROM {table} AS t")
            shown = [{k: v for k, v in _row(record[0]).items() if k not in MASKED | {"seq"}} for record in records]
            found[table] = sorted(json.dumps(row, sort_keys=True) for row in shown)
    return found


def _row(value: Any) -> dict[str, Any]:
    return dict(json.loads(value) if isinstance(value, str) else value)


@pytest.mark.parametrize("name", STEPS)
async def test_killed_before_the_commit_nothing_is_done_and_the_repetition_does_it(scene: Scene, name: str) -> None:
    await die(scene, name, "before")


@pytest.mark.parametrize("name", STEPS)
async def test_killed_after_the_commit_the_repetition_changes_nothing_more(scene: Scene, name: str) -> None:
    await die(scene, name, "after")


async def die(scene: Scene, name: str, when: When) -> None:
    context = scene.harness.context
    dying = Dying(context.db, when, spare=SPARE.get(name, 0))
    untouched = await rows(context.db)
    with pytest.raises(Unavailable, match=f"killed {when} the commit"):
        await STEPS[name](Engine(evolve(context, db=dying)), scene)
    cut_short = await rows(context.db)
    assert bool(difference(untouched, cut_short)) == (when == "after")
    await STEPS[name](scene.harness.engine, scene)
    repeated = await rows(context.db)
    assert difference(untouched, repeated), "the use case does nothing"
    if when == "after":
        assert difference(cut_short, repeated) == {}


def difference(one: dict[str, list[str]], other: dict[str, list[str]]) -> dict[str, set[str]]:
    return {table: found for table in one if (found := set(one[table]) ^ set(other[table]))}
