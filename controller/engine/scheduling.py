"""One scheduling pass of one backend: snapshot -> decide -> tasks, in one transaction.

The backend's row is locked first, so two passes of one backend never overlap, whatever controller runs them.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, assert_never

import structlog
from attrs import frozen

from controller.core.codes import StatusCode
from controller.core.machine import DependencyFailed, Event, Failed, Move, Reset, Started, Waiting
from controller.core.model import Job, JobId
from controller.core.schedule import Decision, FailDependency, SendBack, Snapshot, Start, Wait, decide, next_look
from controller.engine import checking, moves, starting
from controller.engine.capacity import effective
from controller.engine.context import Context
from controller.store import backends, jobs, tasks
from controller.store.queries import Tx

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class Pass:
    """What a scheduling pass did."""

    moved: int
    """How many jobs moved."""
    next_at: datetime | None
    """When time alone may give the next pass something to do."""


async def schedule(ctx: Context, backend: str) -> Pass:
    """Decide and act once.

    :raises Unavailable: the database is away; nothing was done.
    """
    now = ctx.clock.now()
    async with ctx.db.transaction() as tx:
        locked = await backends.lock.one(tx, backend=backend)
        modes = await backends.modes(tx, backend)
        waiting = await jobs.schedulable.all(tx, backend=backend, everything=modes.paused or modes.db_maintenance)
        limits = effective(ctx.backends[backend].limits, locked)
        snapshot = Snapshot(now=now, limits=limits, modes=modes, jobs=waiting)
        decisions = decide(snapshot)
        made = await _apply(ctx, tx, backend, decisions, now) if decisions else []
        next_check = await checking.check(ctx, tx, backend, modes, now)
    moves.announce(ctx, made)
    looks = [at for at in (next_look(snapshot), next_check) if at is not None]
    return Pass(moved=len(made), next_at=min(looks, default=None))


async def _apply(ctx: Context, tx: Tx, backend: str, decisions: Sequence[Decision], now: datetime) -> list[Move]:
    """Write what was decided; job rows, history and tasks each in one statement."""
    affected = {job.id: job for job in await jobs.lock.all(tx, ids=[d.job_id for d in decisions])}
    starts = [affected[d.job_id] for d in decisions if isinstance(d, Start)]
    new_tasks, broken = await _new_tasks(ctx, tx, backend, starts, now)
    made: list[Move] = []
    for decision in decisions:
        job = affected[decision.job_id]
        event = _event(decision)
        if job.id in broken:
            event = Failed(code=StatusCode.INTERNAL_ERROR)
        made.append(moves.of(job, event, now))
    sent_back = [d.job_id for d in decisions if isinstance(d, SendBack)]
    if sent_back:
        await starting.stop_runs(tx, backend, sent_back, now)
    await jobs.write(tx, made)
    if new_tasks:
        await tasks.insert.run(tx, tasks=new_tasks)
        await backends.notify.run(tx, channel=backends.TASKS_CHANNEL, backend=backend)
    if any(transition.ended for move in made for transition in move.transitions):
        await backends.notify.run(tx, channel=backends.SCHEDULE_CHANNEL, backend=backend)
    return made


def _event(decision: Decision) -> Event:
    match decision:
        case Start():
            return Started()
        case Wait(code=code, message=message):
            return Waiting(code=code, message=message)
        case FailDependency():
            return DependencyFailed()
        case SendBack(code=code):
            return Reset(code=code)
        case _:
            assert_never(decision)


async def _new_tasks(
    ctx: Context, tx: Tx, backend: str, starts: Sequence[Job], now: datetime
) -> tuple[list[dict[str, Any]], set[JobId]]:
    """Tasks for the jobs that start; and the jobs for which none can be made, so that they hurt only themselves."""
    if not starts:
        return [], set()
    owners = await starting.owners_of(tx, starts)
    inputs = await starting.inputs_of(tx, backend, starts)
    made: list[dict[str, Any]] = []
    broken: set[JobId] = set()
    for job in starts:
        try:
            made.append(
                starting.run_task(
                    job,
                    job.progress.attempt + 1,
                    owners[job.spec.rap_id],
                    inputs[job.id],
                    ctx.backends[backend].terms,
                    now,
                )
            )
        except Exception:
            log.exception("task_not_made", job_id=job.id, rap_id=job.spec.rap_id, backend=backend)
            broken.add(job.id)
    return made, broken
