"""Accepting a RAP: slow reads first with no transaction open, then one transaction that stores all of it or nothing.

Order of checks and outcomes: reference/opensafely.md sections 1.3 and 4.1.
"""

from collections.abc import Mapping

import attrs
import structlog

from common import tracing
from controller.core import happenings
from controller.core.errors import BackendNotAllowed, Conflict, NotFound, Rejected, Unavailable
from controller.core.machine import created
from controller.core.model import Principal, RapId, RapRequest, Verb
from controller.core.plan import NothingToDo as NoPlan
from controller.core.plan import (
    Plan,
    ResolvedAction,
    check_codelists,
    check_resources,
    check_weights,
    plan,
    with_reusable_actions,
)
from controller.core.project import Project
from controller.core.request_checks import check_workspace
from controller.core.storable import is_storable
from controller.engine.capacity import effective, limits_of
from controller.engine.context import Context
from controller.engine.results import Created, NoChange, NothingToDo
from controller.store import backends, events, jobs, raps
from controller.store.db import TakenBack
from controller.store.queries import Tx

log = structlog.get_logger(__name__)

_REPLANS = 3
"""How often a plan is made again because the workspace changed between looking up and storing."""


async def create_rap(ctx: Context, principal: Principal, request: RapRequest) -> Created | NoChange | NothingToDo:
    """Plan and store a RAP's jobs; repeating a request that was accepted changes nothing.

    :raises BackendNotAllowed: the backend is unknown or not the caller's.
    :raises Conflict: the id was used for another repository, workspace or commit.
    :raises Rejected: the repository, the project file or the request is at fault; nothing was stored.
    :raises Unavailable: try again with the same id.
    """
    if not principal.may(Verb.RUN, request.backend) or request.backend not in ctx.backends:
        raise BackendNotAllowed("Unknown error", backend=request.backend)
    return await accept(ctx, request)


async def accept(ctx: Context, request: RapRequest) -> Created | NoChange | NothingToDo:
    """The same for a caller whose right to it has been checked; see `create_rap` for what is raised."""
    _check_text(request)
    async with ctx.db.connection() as tx:
        if (earlier := await _earlier(tx, request)) is not None:
            return earlier
    check_workspace(request.workspace)
    await ctx.sources.git.check(request.repo_url, request.branch, request.commit)
    project = await ctx.sources.projects.load(request.repo_url, request.commit)
    for _ in range(_REPLANS):
        answer = await _attempt(ctx, request, project)
        if answer is not None:
            return answer
    raise Unavailable("The workspace is changing too quickly; try again.", workspace=request.workspace)


async def _attempt(ctx: Context, request: RapRequest, project: Project) -> Created | NoChange | NothingToDo | None:
    """Look up what the plan needs, then store it; None if the workspace changed so much that more must be looked up."""
    root = tracing.child(request.traceparent)
    async with ctx.db.connection() as tx:
        draft = await _plan(ctx, tx, request, project, root)
        if isinstance(draft, NoPlan):
            # The very same request may have been accepted a moment ago.
            return await _earlier(tx, request) or NothingToDo(rap_id=request.rap_id, details=draft.details)
        limits = await limits_of(ctx, tx, request.backend)
    reusable = await ctx.sources.reusable.resolve(draft.reusable)
    check_codelists(draft, request)
    draft = with_reusable_actions(draft, reusable)
    backend = ctx.backends[request.backend]
    check_weights(draft, limits, configured=backend.limits)
    check_resources(draft, ordinary=backend.terms.ordinary, most=backend.most)
    digests = await _digests(ctx, draft)
    try:
        async with ctx.db.transaction() as tx:
            stored = await _store(ctx, tx, request, project, root, reusable, digests)
    except TakenBack as taken_back:
        answer: NoChange | NothingToDo | None = taken_back.answer
        return answer
    ctx.observer.created(backend=request.backend, jobs=stored.count)
    log.info(
        "rap_created",
        rap_id=stored.rap_id,
        backend=request.backend,
        jobs=stored.count,
        trace_id=tracing.trace_id(root),
    )
    return stored


async def _store(
    ctx: Context,
    tx: Tx,
    request: RapRequest,
    project: Project,
    root: str,
    reusable: Mapping[str, ResolvedAction],
    digests: Mapping[str, str],
) -> Created:
    """Everything or nothing. The RAP's row comes first: its key decides between simultaneous equal creates."""
    now = ctx.clock.now()
    locked = await backends.lock.one(tx, backend=request.backend)
    if await raps.insert.one(tx, **_rap_row(request, root), created_at=now) is None:
        raise TakenBack(await _earlier(tx, request))
    final = await _plan(ctx, tx, request, project, root)
    if isinstance(final, NoPlan):
        raise TakenBack(NothingToDo(rap_id=request.rap_id, details=final.details))
    if not {use.image for use in final.reusable} <= reusable.keys():
        raise TakenBack(None)
    check_codelists(final, request)
    final = with_reusable_actions(final, reusable)
    backend = ctx.backends[request.backend]
    check_weights(final, effective(backend.limits, locked), configured=backend.limits)
    check_resources(final, ordinary=backend.terms.ordinary, most=backend.most)
    planned = [
        attrs.evolve(job, spec=attrs.evolve(job.spec, image_sha=digests.get(_image(job.spec.run_command))))
        for job in final.jobs
    ]
    await jobs.insert(tx, planned, created(now))
    await backends.notify.run(tx, channel=backends.SCHEDULE_CHANNEL, backend=request.backend)
    await events.record(tx, request.backend, [happenings.of_rap(request, len(planned), now)])
    return Created(rap_id=request.rap_id, count=len(planned))


async def _plan(ctx: Context, tx: Tx, request: RapRequest, project: Project, root: str) -> Plan | NoPlan:
    history = await jobs.latest(tx, request.backend, request.workspace, project.actions)
    return plan(
        request,
        project,
        history,
        now=ctx.clock.now(),
        new_traceparent=lambda: tracing.child(root),
        weight=ctx.backends[request.backend].weights.weigh,
        grant=ctx.backends[request.backend].weights.grant,
        event_level_projects=ctx.event_level_projects,
    )


async def _earlier(tx: Tx, request: RapRequest) -> NoChange | None:
    """The answer to a repeated id: equal in repository, workspace and commit, or a conflict (edge behaviour 6)."""
    found = await raps.find.one(tx, id=request.rap_id)
    if found is None:
        return None
    if {found.repo_url, found.workspace, found.commit} != {
        request.repo_url,
        request.workspace,
        request.commit,
    }:
        raise Conflict(
            f"Jobs already created for rap_id '{request.rap_id}' are inconsistent with request data",
            rap_id=request.rap_id,
        )
    return NoChange(rap_id=RapId(found.id), count=found.job_count)


async def _digests(ctx: Context, draft: Plan) -> dict[str, str]:
    """Image -> digest for every image of the plan, if digests are looked up at all."""
    if ctx.sources.digests is None:
        return {}
    try:
        return {
            image: await ctx.sources.digests.resolve(image)
            for image in sorted({_image(job.spec.run_command) for job in draft.jobs})
        }
    except NotFound as error:
        raise Rejected(error.message, **error.fields) from error


def _image(run_command: str) -> str:
    return run_command.split(maxsplit=1)[0]


def _check_text(request: RapRequest) -> None:
    """PostgreSQL stores no NUL and no lone surrogate; say so rather than fail.

    :raises Rejected: naming the field.
    """
    for name, value in attrs.asdict(request).items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not is_storable(text):
                raise Rejected(f"{name} contains characters that cannot be stored", field=name)


def _rap_row(request: RapRequest, root: str) -> dict[str, object]:
    return {
        "id": request.rap_id,
        "dialect": request.dialect,
        "backend": request.backend,
        "workspace": request.workspace,
        "repo_url": request.repo_url,
        "branch": request.branch,
        "commit": request.commit,
        "database_name": request.database_name,
        "requested_actions": list(request.requested_actions),
        "codelists_ok": request.codelists_ok,
        "force_run_dependencies": request.force_run_dependencies,
        "created_by": request.created_by,
        "project": request.project,
        "orgs": list(request.orgs),
        "analysis_scope": dict(request.analysis_scope),
        "traceparent": root,
        "parent_traceparent": request.traceparent,
    }
