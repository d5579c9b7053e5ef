"""`GET raps`, `GET raps/{rap}`: accepted requests, and each with its jobs."""

from collections.abc import Mapping

from aiohttp import web
from attrs import frozen

from controller.core.codes import JobState
from controller.core.model import RapId
from controller.dialects.native import jobs, query, times
from controller.engine import results
from controller.web import auth, json_api
from controller.web.keys import ENGINE


@frozen(kw_only=True)
class RapQuery:
    """The query of `GET raps`."""

    limit: int = query.DEFAULT_PAGE
    cursor: str | None = None
    backend: str | None = None
    workspace: str | None = None
    state: str | None = None
    """`active` or `finished`."""
    created_by: str | None = None
    search: str | None = None


@frozen(kw_only=True)
class Rap:
    """One accepted request."""

    id: str
    state: str
    """`pending`, `running`, `succeeded` or `failed`, of the RAP as a whole."""
    backend: str
    workspace: str
    project: str
    created_by: str
    created_at: str
    repo_url: str
    branch: str
    commit: str
    requested_actions: tuple[str, ...]
    counts: Mapping[str, int]
    """How many jobs are in each of the four states."""
    trace_id: str | None
    traceparent: str


@frozen(kw_only=True)
class RapPage:
    """Answer to `GET raps`: newest first; `next_cursor` is null on the last page."""

    raps: tuple[Rap, ...]
    next_cursor: str | None


@frozen(kw_only=True)
class RapDetail:
    """Answer to `GET raps/{id}`: jobs are in the order of their graph, dependencies first."""

    rap: Rap
    jobs: tuple[jobs.Job, ...]


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/raps", list_raps)
    app.router.add_get("/raps/{rap}", show_rap)


async def list_raps(request: web.Request) -> web.Response:
    """One page of RAPs, newest first."""
    principal = await auth.client(request)
    wanted = rap_query(request.query)
    found = await request.config_dict[ENGINE].list_raps(
        principal,
        backend=wanted.backend,
        workspace=wanted.workspace,
        state=wanted.state,
        limit=wanted.limit,
        cursor=wanted.cursor,
        created_by=wanted.created_by,
        search=wanted.search,
    )
    return json_api.send(page(found))


async def show_rap(request: web.Request) -> web.Response:
    """A RAP and its jobs."""
    principal = await query.caller(request)
    rap = RapId(query.identifier("RAP", request.match_info["rap"]))
    return json_api.send(rap_detail(await request.config_dict[ENGINE].rap_detail(principal, rap)))


def rap_query(given: Mapping[str, str]) -> RapQuery:
    """The query of `GET raps`.

    :raises Rejected: with every fault, by the parameter's name.
    """
    parameters = query.Parameters(given)
    found = RapQuery(
        limit=parameters.number("limit", least=1, most=query.MAX_PAGE) or query.DEFAULT_PAGE,
        cursor=parameters.text("cursor"),
        backend=parameters.text("backend"),
        workspace=parameters.text("workspace"),
        state=parameters.text("state", among=("active", "finished")),
        created_by=parameters.text("created_by"),
        search=parameters.text("search"),
    )
    parameters.done()
    return found


def page(value: results.Page) -> RapPage:
    """A page of RAPs."""
    return RapPage(raps=tuple(rap(each) for each in value.raps), next_cursor=value.next_cursor)


def rap_detail(value: results.RapDetail) -> RapDetail:
    """A RAP and its jobs."""
    return RapDetail(rap=rap(value.rap), jobs=tuple(jobs.job(each) for each in value.jobs))


def rap(summary: results.RapSummary) -> Rap:
    """One RAP, with a count for every state."""
    return Rap(
        id=summary.id,
        state=overall(summary.counts).value,
        backend=summary.backend,
        workspace=summary.workspace,
        project=summary.project,
        created_by=summary.created_by,
        created_at=times.timestamp(summary.created_at),
        repo_url=summary.repo_url,
        branch=summary.branch,
        commit=summary.commit,
        requested_actions=tuple(summary.requested_actions),
        counts={state.value: summary.counts.get(state, 0) for state in JobState},
        trace_id=jobs.trace_id(summary.traceparent),
        traceparent=summary.traceparent,
    )


def overall(counts: Mapping[JobState, int]) -> JobState:
    """The state of a RAP as a whole: running from its first start until nothing can change any more."""
    present = {state for state, count in counts.items() if count}
    if present <= {JobState.PENDING}:
        return JobState.PENDING
    if present & {JobState.PENDING, JobState.RUNNING}:
        return JobState.RUNNING
    return JobState.FAILED if JobState.FAILED in present else JobState.SUCCEEDED
