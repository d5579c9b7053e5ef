"""Having one job tried again, by an operator's decision.

What runs or rests is moved in the call, under the backend's lock, so that no report, cancel or claim of the same moment
can undo it. What has failed stays as it is, and a new RAP asks for its action.
"""

import enum
from typing import assert_never

import structlog
from attrs import frozen

from common.ids import job_id as id_of_job
from common.ids import retry_rap_id
from controller.core.codes import JobState
from controller.core.errors import NotFound, Rejected
from controller.core.machine import Retried
from controller.core.model import RUN_ALL, Job, JobId, Principal, RapId, RapRequest
from controller.engine import creating, moves
from controller.engine.admission import lock_job
from controller.engine.context import Context
from controller.engine.results import NothingToDo
from controller.store import jobs, raps

log = structlog.get_logger(__name__)


class RetryOutcome(enum.StrEnum):
    """What retrying a job came to."""

    STOPPED = "stopped"
    """It ran: that attempt is void, and the job is in the queue for another."""
    HASTENED = "hastened"
    """It rested after an error of the platform: now it may start as soon as there is room."""
    RESUBMITTED = "resubmitted"
    """It had failed: a new RAP asks for its action."""
    NOTHING = "nothing"
    """There was nothing to retry."""


@frozen(kw_only=True)
class JobRetried:
    """What retrying a job did."""

    job: Job
    """As it is now."""
    outcome: RetryOutcome
    message: str
    """One sentence about it."""
    rap_id: RapId | None = None
    """The RAP that asks for the action again, whether it was made now or by an earlier retry."""
    new_job: JobId | None = None
    """The job that stands in for this one: in that RAP, or somebody else's of the same action."""


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
        job = await lock_job(tx, principal, job_id)
        state = job.progress.state
        if state is JobState.RUNNING and attempt in (None, job.progress.attempt):
            outcome, event = RetryOutcome.STOPPED, Retried()
        elif state is JobState.PENDING and _rests(ctx, job):
            outcome, event = RetryOutcome.HASTENED, Retried()
        else:
            outcome, event = RetryOutcome.NOTHING, None
        now = ctx.clock.now()
        made = [] if event is None else [moves.of(job, event, now)]
        if made:
            await moves.intervene(tx, job.spec.backend, made, now)
        (job,) = await jobs.lock.all(tx, ids=[job_id])
    moves.announce(ctx, made)
    if made:
        log.info("job_retried", job_id=job_id, backend=job.spec.backend, how=outcome.value, principal=principal.name)
    match state:
        case JobState.RUNNING | JobState.PENDING:
            return JobRetried(job=job, outcome=outcome, message=_sentence(job, outcome))
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


def _rests(ctx: Context, job: Job) -> bool:
    return job.progress.not_before is not None and job.progress.not_before > ctx.clock.now()


def _sentence(job: Job, outcome: RetryOutcome) -> str:
    progress = job.progress
    match outcome:
        case RetryOutcome.STOPPED:
            return f"Attempt {progress.attempt} is stopped; the job is in the queue for another."
        case RetryOutcome.HASTENED:
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
        return JobRetried(job=job, outcome=RetryOutcome.NOTHING, message=text)
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
            outcome=RetryOutcome.RESUBMITTED,
            message=f"The job was retried already, by RAP {rap_id}.",
            rap_id=rap_id,
            new_job=new_job,
        )
    if asked is None:
        raise NotFound(f"The RAP of job {job.id} is gone", job_id=job.id)
    if latest is not None and latest.state is not JobState.FAILED:
        return JobRetried(
            job=job,
            outcome=RetryOutcome.NOTHING,
            message=f"There is nothing to retry: job {latest.id} of the same action is {latest.state.value}.",
            new_job=latest.id,
        )
    answer = await creating.accept(ctx, _request(asked, rap_id, job.spec.action))
    if isinstance(answer, NothingToDo):
        return JobRetried(
            job=job, outcome=RetryOutcome.NOTHING, message=f"There is nothing to retry: {answer.details}."
        )
    log.info(
        "job_retried",
        job_id=job.id,
        backend=job.spec.backend,
        how=RetryOutcome.RESUBMITTED.value,
        new_rap_id=rap_id,
        principal=principal.name,
    )
    return JobRetried(
        job=job,
        outcome=RetryOutcome.RESUBMITTED,
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
