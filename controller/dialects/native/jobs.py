"""`GET jobs`, `GET jobs/{job}`: jobs over all RAPs, and each with its outputs and history."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from attrs import frozen

from common import tracing
from controller.core.resources import JobLimits
from controller.dialects.native import query, times
from controller.engine import listing, results
from controller.engine.listing import STATES
from controller.web import auth, json_api
from controller.web.keys import ENGINE


@frozen(kw_only=True)
class JobQuery:
    """The query of `GET jobs`."""

    limit: int = query.DEFAULT_PAGE
    cursor: str | None = None
    backend: str | None = None
    workspace: str | None = None
    state: str | None = None
    code: str | None = None
    created_by: str | None = None
    search: str | None = None


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
class Output:
    """One output file, as far as the backend lets it be named."""

    path: str
    level: str
    size: int
    sha256: str
    excluded: bool
    message: str
    released_by: str | None
    released_at: str | None


@frozen(kw_only=True)
class Change:
    """One entry of a job's history."""

    at: str
    attempt: int
    state: str
    code: str
    message: str


@frozen(kw_only=True)
class Limits:
    """What an attempt at a job may use."""

    cpu_count: float
    memory_limit: str
    time_limit: float | None
    """Seconds."""


@frozen(kw_only=True)
class Job:
    """One action of a RAP."""

    id: str
    rap_id: str
    action: str
    kind: str
    state: str
    code: str
    message: str
    attempt: int
    cancelled: bool
    created_at: str
    started_at: str | None
    completed_at: str | None
    updated_at: str
    code_changed_at: str
    backend: str
    workspace: str
    run_command: str
    requires_db: bool
    needs: tuple[str, ...]
    repo_url: str
    branch: str
    commit: str
    agent: str | None
    exit_code: str | None
    limits: Limits | None
    metrics: Mapping[str, Any]
    outputs: tuple[Output, ...]
    history: tuple[Change, ...]
    trace_id: str | None
    traceparent: str


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/jobs", list_jobs)
    app.router.add_get("/jobs/{job}", show_job)


async def list_jobs(request: web.Request) -> web.Response:
    """One page of jobs: those that are not finished oldest first, others newest first."""
    principal = await auth.client(request)
    wanted = job_query(request.query)
    page = await request.config_dict[ENGINE].list_jobs(
        principal,
        backend=wanted.backend,
        workspace=wanted.workspace,
        state=wanted.state,
        code=wanted.code,
        limit=wanted.limit,
        cursor=wanted.cursor,
        created_by=wanted.created_by,
        search=wanted.search,
    )
    return json_api.send(job_page(page))


async def show_job(request: web.Request) -> web.Response:
    """A job with its outputs and history."""
    principal = await query.caller(request)
    return json_api.send(job(await request.config_dict[ENGINE].job_detail(principal, query.job_id(request))))


def job_query(given: Mapping[str, str]) -> JobQuery:
    """The query of `GET jobs`.

    :raises Rejected: with every fault, by the parameter's name.
    """
    parameters = query.Parameters(given)
    found = JobQuery(
        limit=parameters.number("limit", least=1, most=query.MAX_PAGE) or query.DEFAULT_PAGE,
        cursor=parameters.text("cursor"),
        backend=parameters.text("backend"),
        workspace=parameters.text("workspace"),
        state=parameters.text("state", among=STATES),
        code=parameters.text("code"),
        created_by=parameters.text("created_by"),
        search=parameters.text("search"),
    )
    parameters.done()
    return found


def job_page(value: listing.JobPage) -> JobPage:
    """A page of jobs."""
    return JobPage(jobs=tuple(_summary(each) for each in value.jobs), next_cursor=value.next_cursor)


def job(detail: results.JobDetail) -> Job:
    """A job with its outputs and history."""
    spec, progress = detail.job.spec, detail.job.progress
    return Job(
        id=spec.id,
        rap_id=spec.rap_id,
        action=spec.action,
        kind=spec.kind.value,
        state=progress.state.value,
        code=progress.code.value,
        message=progress.message,
        attempt=progress.attempt,
        cancelled=progress.cancelled,
        created_at=times.timestamp(spec.created_at),
        started_at=times.maybe(progress.started_at),
        completed_at=times.maybe(progress.completed_at),
        updated_at=times.timestamp(progress.updated_at),
        code_changed_at=times.timestamp(progress.code_changed_at),
        backend=spec.backend,
        workspace=spec.workspace,
        run_command=spec.run_command,
        requires_db=spec.requires_db,
        needs=tuple(spec.needs),
        repo_url=spec.repo_url,
        branch=spec.branch,
        commit=spec.commit,
        agent=detail.agent,
        exit_code=detail.exit_code,
        limits=_limits(detail.limits),
        metrics=dict(detail.job.metrics),
        outputs=tuple(_output(each) for each in detail.outputs),
        history=tuple(_change(each) for each in detail.history),
        trace_id=trace_id(spec.traceparent),
        traceparent=spec.traceparent,
    )


def trace_id(traceparent: str) -> str | None:
    """The trace's id out of a W3C `traceparent`; None if it is not one."""
    return tracing.trace_id(traceparent) or None


def _summary(value: listing.JobSummary) -> JobSummary:
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
        not_before=times.maybe(value.not_before),
        agent=value.agent,
        created_at=times.timestamp(value.created_at),
        started_at=times.maybe(value.started_at),
        completed_at=times.maybe(value.completed_at),
        code_changed_at=times.timestamp(value.code_changed_at),
    )


def _limits(value: JobLimits | None) -> Limits | None:
    if value is None:
        return None
    return Limits(cpu_count=value.cpu_count, memory_limit=value.memory_limit, time_limit=value.time_limit)


def _output(value: results.OutputView) -> Output:
    return Output(
        path=value.path,
        level=value.level,
        size=value.size,
        sha256=value.sha256,
        excluded=value.excluded,
        message=value.message,
        released_by=value.released_by,
        released_at=times.maybe(value.released_at),
    )


def _change(value: results.HistoryEntry) -> Change:
    return Change(
        at=times.timestamp(value.at),
        attempt=value.attempt,
        state=value.state.value,
        code=value.code.value,
        message=value.message,
    )
