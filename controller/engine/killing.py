"""Ending one job, by an operator's decision.

It happens in the call, under the backend's lock, so that no report, cancel or claim of the same moment can undo it;
whoever comes second finds the job as the first has left it.
"""

import structlog
from attrs import frozen

from controller.core.machine import Killed
from controller.core.model import Job, JobId, Principal
from controller.engine import moves
from controller.engine.admission import lock_job
from controller.engine.context import Context
from controller.store import jobs

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class JobKilled:
    """What killing a job did."""

    job: Job
    """As it is now."""
    changed: bool
    """False if it was over already."""


async def kill(ctx: Context, principal: Principal, job_id: JobId) -> JobKilled:
    """End a job that is not finished: it fails with `killed_by_admin`, and whoever needs it fails with it.

    A finished one is left alone, so that a repetition changes nothing. Unlike a cancelled job, a killed one stays in
    its workspace's memory as what it is: failed (edge behaviours 10 and 13).

    :raises NotFound: no such job for this caller.
    :raises Forbidden: the caller does not manage its backend.
    """
    async with ctx.db.transaction() as tx:
        job = await lock_job(tx, principal, job_id)
        if job.progress.state.is_terminal:
            return JobKilled(job=job, changed=False)
        now = ctx.clock.now()
        made = [moves.of(job, Killed(), now)]
        await moves.intervene(tx, job.spec.backend, made, now)
        (killed,) = await jobs.lock.all(tx, ids=[job_id])
    moves.announce(ctx, made)
    log.info("job_killed", job_id=job_id, backend=job.spec.backend, principal=principal.name)
    return JobKilled(job=killed, changed=True)
