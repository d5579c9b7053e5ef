"""What operators do to one job: end it, or have it tried again (decisions of a person, never of the platform).

Both happen in the call, under the backend's lock, so that no report, cancel or claim of the same moment can undo them;
whoever comes second finds the job as the first has left it.
"""

from typing import assert_never

import structlog

from common.ids import job_id as id_of_job
from common.ids import retry_rap_id
from controller.core.codes import JobState
from controller.core.errors import NotFound, Rejected
from controller.core.machine import Event, Killed, Move, Retried, step
from controller.core.model import RUN_ALL, Job, JobId, Principal, RapId, RapRequest
from controller.engine import creating
from controller.engine.admission import admit_operator
from controller.engine.context import Context
from controller.engine.moves import log_moves
from controller.engine.results import JobKilled, JobRetried, NothingToDo, Retry
from controller.engine.starting import stop_runs
from controller.store import backends, jobs, raps
from controller.store.queries import Tx

log = structlog.get_logger(__name__)


async def kill(ctx: Context, principal: Principal, job_id: JobId) -> JobKilled:
    """End a job that is not finished: it fails with `killed_by_admin`, and whoever needs it fails with it.

    A finished one is left alone, so that a repetition changes nothing. Unlike a cancelled job, a killed one stays in
    its workspace's memory as what it is: failed (edge behaviours 10 and 13).

    :raises NotFound: no such job for this caller.
    :raises Forbidden: the caller does not manage its backend.
    """
    async with ctx.db.transaction() as tx:
        job = await _lock(tx, principal, job_id)
        if job.progress.state.is_terminal:
            return JobKilled(job=job, changed=False)
        move = await _move(ctx, tx, job, Killed())
        (now,) = await jobs.lock.all(tx, ids=[job_id])
    log_moves([move])
    log.info("job_killed", job_id=job_id, backend=job.spec.backend, principal=principal.name)
    return JobKilled(job=now, changed=True)


async def retry(ctx: Context, principal: Principal, job_id: JobId, *, attempt: int | None = None) -> JobRetried:
    """Have a job tried again, in the way that its state allows.

    :param attempt: the newest attempt that the caller knows of. If another one has begun since, nothing happens: so a
        repetition, after an answer that was lost, does not stop the attempt that the first request made room for.
    :raises NotFound: no such job for this caller.
    :raises Forbidden: the caller does not manage its backend.
    :raises Rejected: it succeeded; or the action cannot be asked for again (then with the sentence that a portal gets).
    :raises Unavailable: try again.
    """
    async with ctx.db.transaction() as tx:
        job = await _lock(tx, principal, job_id)
        state = job.progress.state
        if state is JobState.RUNNING and attempt in (None, job.progress.attempt):
            done, event = Retry.STOPPED, Retried()
        elif state is JobState.PENDING and _rests(ctx, job):
            done, event = Retry.HASTENED, Retried()
        else:
            done, event = Retry.NOTHING, None
        moves = [] if event is None else [await _move(ctx, tx, job, event)]
        (job,) = await jobs.lock.all(tx, ids=[job_id])
    log_moves(moves)
    if moves:
        log.info("job_retried", job_id=job_id, backend=job.spec.backend, how=done.value, principal=principal.name)
    match state:
        case JobState.RUNNING | JobState.PENDING:
            return JobRetried(job=job, done=done, message=_sentence(job, done))
        case JobState.FAILED:
            return await _resubmit(ctx, principal, job)
        case JobState.SUCCEEDED:
            raise Rejected(
                f"Job {job_id} has succeeded: to run action {job.spec.action} again, ask for it by name"
                " (`rap submit` with that action).",
                job_id=job_id,
            )
        case _:
            assert_never(state)


async def _lock(tx: Tx, principal: Principal, job_id: JobId) -> Job:
    """The job as it is until the transaction ends. Its backend never changes, so that may be read without a lock."""
    found = await jobs.find.one(tx, id=job_id, backends=list(principal.backends))
    if found is None:
        raise NotFound(f"No job {job_id}", job_id=job_id)
    admit_operator(principal, found.spec.backend)
    await backends.lock.run(tx, backend=found.spec.backend)
    locked = await jobs.lock.all(tx, ids=[job_id])
    if not locked:
        raise NotFound(f"No job {job_id}", job_id=job_id)  # pruned in between
    return locked[0]


async def _move(ctx: Context, tx: Tx, job: Job, event: Event) -> Move:
    """Apply the event, stop the attempt that runs, and wake the scheduler."""
    now = ctx.clock.now()
    move = Move(job=job, transitions=(step(job.progress, event, now),), metrics=job.metrics)
    if job.progress.state is JobState.RUNNING:
        await stop_runs(tx, job.spec.backend, [job.id], now)
    await jobs.write(tx, [move])
    await backends.notify.run(tx, channel=backends.SCHEDULE_CHANNEL, backend=job.spec.backend)
    return move


def _rests(ctx: Context, job: Job) -> bool:
    return job.progress.not_before is not None and job.progress.not_before > ctx.clock.now()


def _sentence(job: Job, done: Retry) -> str:
    progress = job.progress
    match done:
        case Retry.STOPPED:
            return f"Attempt {progress.attempt} is stopped; the job is in the queue for another."
        case Retry.HASTENED:
            return "The job rests no longer; it starts as soon as there is room."
        case _ if progress.state is JobState.RUNNING:
            return f"Attempt {progress.attempt} has begun already; nothing was stopped."
        case _:
            return f"There is nothing to retry: the job waits ({progress.message})."


async def _resubmit(ctx: Context, principal: Principal, job: Job) -> JobRetried:
    """Ask for a failed job's action once more. What is finished never changes, so that takes a new RAP.

    Its id is made of the job's, so that a repetition finds it. Dependencies run again only if they failed, whatever
    the first request said: that they succeeded is no fault to mend.
    """
    if job.progress.cancelled:
        text = "The job was cancelled by its user, who may ask for it again: nothing was done."
        return JobRetried(job=job, done=Retry.NOTHING, message=text)
    if job.spec.action == RUN_ALL:
        raise Rejected(
            f"An action that is called {RUN_ALL} cannot be asked for by itself: retry one of those that need it.",
            job_id=job.id,
        )
    rap_id = RapId(retry_rap_id(job.id))
    new_job = JobId(id_of_job(rap_id, job.spec.action))
    async with ctx.db.connection() as tx:
        asked = await raps.request.one(tx, id=job.spec.rap_id)
        latest = (await jobs.latest(tx, job.spec.backend, job.spec.workspace, [job.spec.action])).get(job.spec.action)
        # Read last: whatever retry the newest job may be of, its RAP is then seen here.
        earlier = await raps.find.one(tx, id=rap_id)
    if earlier is not None:
        return JobRetried(
            job=job,
            done=Retry.RESUBMITTED,
            message=f"The job was retried already, by RAP {rap_id}.",
            rap_id=rap_id,
            new_job=new_job,
        )
    if asked is None:
        raise NotFound(f"The RAP of job {job.id} is gone", job_id=job.id)
    if latest is not None and latest.state is not JobState.FAILED:
        return JobRetried(
            job=job,
            done=Retry.NOTHING,
            message=f"There is nothing to retry: job {latest.id} of the same action is {latest.state.value}.",
            new_job=latest.id,
        )
    answer = await creating.accept(ctx, _request(asked, rap_id, job.spec.action))
    if isinstance(answer, NothingToDo):
        return JobRetried(job=job, done=Retry.NOTHING, message=f"There is nothing to retry: {answer.details}.")
    log.info(
        "job_retried",
        job_id=job.id,
        backend=job.spec.backend,
        how=Retry.RESUBMITTED.value,
        new_rap_id=rap_id,
        principal=principal.name,
    )
    return JobRetried(
        job=job,
        done=Retry.RESUBMITTED,
        message=f"The job is finished and stays so; RAP {rap_id} asks for its action again.",
        rap_id=rap_id,
        new_job=new_job,
    )


def _request(asked: raps.RequestRow, rap_id: RapId, action: str) -> RapRequest:
    return RapRequest(
        rap_id=rap_id,
        dialect=asked.dialect,
        backend=asked.backend,
        workspace=asked.workspace,
        repo_url=asked.repo_url,
        branch=asked.branch,
        commit=asked.commit,
        database_name=asked.database_name,
        requested_actions=(action,),
        codelists_ok=asked.codelists_ok,
        force_run_dependencies=False,
        created_by=asked.created_by,
        project=asked.project,
        orgs=tuple(asked.orgs),
        analysis_scope=asked.analysis_scope,
        traceparent=asked.parent_traceparent,
    )
