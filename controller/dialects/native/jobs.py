"""`GET jobs`, `POST jobs/{job}/kill`, `POST jobs/{job}/retry`: jobs over all RAPs, and what operators do to one."""

from collections.abc import Mapping
from typing import Final

from aiohttp import web
from attrs import frozen

from controller.core.model import Job as CoreJob
from controller.core.model import JobId, Principal
from controller.dialects.native import mapping, wire
from controller.engine import results
from controller.engine.listing import STATES
from controller.web import auth, body, json_api
from controller.web.contract import Contract
from controller.web.keys import ENGINE

BODY: Final = Contract.load("native").shape("retry")


@frozen(kw_only=True)
class JobQuery:
    """The query of `GET jobs`."""

    limit: int = wire.DEFAULT_PAGE
    cursor: str | None = None
    backend: str | None = None
    workspace: str | None = None
    state: str | None = None
    code: str | None = None


@frozen(kw_only=True)
class JobSummary:
    """A job in a list: without outputs, history and metrics."""

    id: str
    rap_id: str
    backend: str
    workspace: str
    action: str
    created_by: str
    state: str
    code: str
    message: str
    requires_db: bool
    weight: float
    attempt: int
    cancelled: bool
    faults: int
    not_before: str | None
    agent: str | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    code_changed_at: str


@frozen(kw_only=True)
class JobPage:
    """Answer to `GET jobs`; `next_cursor` is null on the last page, and on no other."""

    jobs: tuple[JobSummary, ...]
    next_cursor: str | None


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

    done: str
    """`stopped`, `hastened`, `resubmitted` or `nothing`."""
    message: str
    rap_id: str | None
    new_job: str | None
    job: JobNow


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/jobs", list_jobs)
    app.router.add_post("/jobs/{job}/kill", kill)
    app.router.add_post("/jobs/{job}/retry", retry)


async def list_jobs(request: web.Request) -> web.Response:
    """One page of jobs: those that are not finished oldest first, others newest first."""
    principal = await auth.client(request)
    query = job_query(request.query)
    page = await request.config_dict[ENGINE].list_jobs(
        principal,
        backend=query.backend,
        workspace=query.workspace,
        state=query.state,
        code=query.code,
        limit=query.limit,
        cursor=query.cursor,
    )
    return json_api.send(job_page(page))


async def kill(request: web.Request) -> web.Response:
    """End a job."""
    principal, job = await _operator(request)
    return json_api.send(job_killed(await request.config_dict[ENGINE].kill(principal, job)))


async def retry(request: web.Request) -> web.Response:
    """Have a job tried again."""
    principal, job = await _operator(request)
    attempt = known_attempt(await body.read(request, wire.MAX_BODY))
    return json_api.send(job_retried(await request.config_dict[ENGINE].retry(principal, job, attempt=attempt)))


async def _operator(request: web.Request) -> tuple[Principal, JobId]:
    """The caller and the job in the path; whether the one may manage the other is the engine's to say."""
    principal = await auth.client(request)
    mapping.no_query(request.query)
    return principal, JobId(mapping.identifier("job", request.match_info["job"]))


def job_query(query: Mapping[str, str]) -> JobQuery:
    """The query of `GET jobs`.

    :raises Rejected: with every fault, by the parameter's name.
    """
    parameters = mapping.Parameters(query)
    found = JobQuery(
        limit=parameters.number("limit", least=1, most=wire.MAX_PAGE) or wire.DEFAULT_PAGE,
        cursor=parameters.text("cursor"),
        backend=parameters.text("backend"),
        workspace=parameters.text("workspace"),
        state=parameters.text("state", among=STATES),
        code=parameters.text("code"),
    )
    parameters.done()
    return found


def known_attempt(raw: bytes) -> int | None:
    """The newest attempt that the caller of `retry` knows of; None for an empty body, and if it does not say.

    :raises MalformedBody: it is not what the contract says.
    """
    if not raw:
        return None
    found = body.parse_unicode(raw)
    BODY.check(found)
    attempt: int | None = found.get("attempt")
    return attempt


def job_page(value: results.JobPage) -> JobPage:
    """A page of jobs."""
    return JobPage(jobs=tuple(_summary(each) for each in value.jobs), next_cursor=value.next_cursor)


def job_killed(value: results.JobKilled) -> JobKilled:
    """What killing did."""
    return JobKilled(changed=value.changed, job=_now(value.job))


def job_retried(value: results.JobRetried) -> JobRetried:
    """What retrying did."""
    return JobRetried(
        done=value.done.value,
        message=value.message,
        rap_id=value.rap_id,
        new_job=value.new_job,
        job=_now(value.job),
    )


def _summary(value: results.JobSummary) -> JobSummary:
    return JobSummary(
        id=value.id,
        rap_id=value.rap_id,
        backend=value.backend,
        workspace=value.workspace,
        action=value.action,
        created_by=value.created_by,
        state=value.state.value,
        code=value.code.value,
        message=value.message,
        requires_db=value.requires_db,
        weight=value.weight,
        attempt=value.attempt,
        cancelled=value.cancelled,
        faults=value.faults,
        not_before=mapping.maybe(value.not_before),
        agent=value.agent,
        created_at=mapping.timestamp(value.created_at),
        started_at=mapping.maybe(value.started_at),
        completed_at=mapping.maybe(value.completed_at),
        code_changed_at=mapping.timestamp(value.code_changed_at),
    )


def _now(job: CoreJob) -> JobNow:
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
