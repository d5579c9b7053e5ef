"""Taking over from agents that fell silent.

A lease that ended is acted upon only while another agent of the backend is alive: the attempt becomes void and its job
goes back to the queue. The attempt number fences the old holder off: whatever it still reports is stale, and its next
claim tells it to stop.
"""

import random
from datetime import timedelta

import structlog

from controller.core.machine import Move, step
from controller.core.model import JobId
from controller.core.outcome import after_fault
from controller.engine.context import Context
from controller.engine.moves import log_moves
from controller.store import backends, jobs, tasks

log = structlog.get_logger(__name__)


async def take_over(ctx: Context, backend: str) -> int:
    """Void the attempts of silent agents; how many.

    :raises Unavailable: the database is away; nothing was done.
    """
    now = ctx.clock.now()
    async with ctx.db.transaction() as tx:
        await backends.lock.run(tx, backend=backend)
        alive_since = now - timedelta(seconds=ctx.lease_seconds)
        found = await tasks.abandoned.all(tx, backend=backend, now=now, alive_since=alive_since)
        if not found:
            return 0
        silent = {JobId(row.job_id): row.agent for row in found}
        await tasks.void_runs.all(tx, job_ids=list(silent), now=now)
        moves = []
        for job in await jobs.lock.all(tx, ids=list(silent)):
            event = after_fault(job, f"Its agent {silent[job.id]} fell silent.", None, jitter=random.random())  # noqa: S311  no secret
            moves.append(Move(job=job, transitions=(step(job.progress, event, now),), metrics={}))
        await jobs.write(tx, moves)
        await backends.notify.run(tx, channel=backends.SCHEDULE_CHANNEL, backend=backend)
    log.warning("agents_silent", backend=backend, agents=sorted(set(silent.values())), jobs=len(silent))
    log_moves(moves)
    return len(moves)
