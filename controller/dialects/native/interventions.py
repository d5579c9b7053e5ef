"""`POST jobs/{job}/kill`, `POST jobs/{job}/retry`: what operators do to one job."""

from typing import Final

from aiohttp import web
from attrs import frozen

from controller.core.model import Job
from controller.dialects.native import query
from controller.engine import killing, retrying
from controller.web import body, json_api
from controller.web.keys import ENGINE

RETRY: Final = query.CONTRACT.shape("retry")


@frozen(kw_only=True)
class JobNow:
    """A job as a command has left it."""

    id: str
    rap_id: str
    backend: str
    workspace: str
    action: str
    state: str
    code: str
    message: str
    attempt: int


@frozen(kw_only=True)
class JobKilled:
    """Answer to `POST jobs/{job}/kill`: `changed` is false if the job was over already."""

    changed: bool
    job: JobNow


@frozen(kw_only=True)
class JobRetried:
    """Answer to `POST jobs/{job}/retry`."""

    outcome: str
    """`stopped`, `hastened`, `resubmitted` or `nothing`."""
    message: str
    rap_id: str | None
    new_job: str | None
    job: JobNow


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_post("/jobs/{job}/kill", kill)
    app.router.add_post("/jobs/{job}/retry", retry)


async def kill(request: web.Request) -> web.Response:
    """End a job."""
    principal, job = await query.caller(request), query.job_id(request)
    return json_api.send(job_killed(await request.config_dict[ENGINE].kill(principal, job)))


async def retry(request: web.Request) -> web.Response:
    """Have a job tried again."""
    principal, job = await query.caller(request), query.job_id(request)
    attempt = known_attempt(await body.read(request, query.MAX_BODY))
    return json_api.send(job_retried(await request.config_dict[ENGINE].retry(principal, job, attempt=attempt)))


def known_attempt(raw: bytes) -> int | None:
    """The newest attempt that the caller of `retry` knows of; None for an empty body, and if it does not say.

    :raises MalformedBody: it is not what the contract says.
    """
    if not raw:
        return None
    found = body.parse_unicode(raw)
    RETRY.check(found)
    attempt: int | None = found.get("attempt")
    return attempt


def job_killed(value: killing.JobKilled) -> JobKilled:
    """What killing did."""
    return JobKilled(changed=value.changed, job=_now(value.job))


def job_retried(value: retrying.JobRetried) -> JobRetried:
    """What retrying did."""
    return JobRetried(
        outcome=value.outcome.value,
        message=value.message,
        rap_id=value.rap_id,
        new_job=value.new_job,
        job=_now(value.job),
    )


def _now(job: Job) -> JobNow:
    return JobNow(
        id=job.id,
        rap_id=job.spec.rap_id,
        backend=job.spec.backend,
        workspace=job.spec.workspace,
        action=job.spec.action,
        state=job.progress.state.value,
        code=job.progress.code.value,
        message=job.progress.message,
        attempt=job.progress.attempt,
    )
