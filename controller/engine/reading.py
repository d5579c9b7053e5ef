"""Reads: they never change state and never wait on an agent."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

from controller.core import releases
from controller.core.checks import ALLOWED_ANSWERS
from controller.core.codes import JobState, StatusCode
from controller.core.errors import NotFound
from controller.core.model import Flag, Job, JobId, Principal, RapId, TaskType, Verb
from controller.core.resources import JobLimits
from controller.engine.context import Context
from controller.engine.listing import rap_summary
from controller.engine.results import (
    AgentView,
    BackendView,
    CheckView,
    HistoryEntry,
    JobDetail,
    LogPage,
    OutputView,
    RapDetail,
    StatusReport,
)
from controller.store import backends, jobs, raps, tasks
from controller.store.queries import Tx

R = TypeVar("R")
_MOST_OTHERS: Final = 1000


def _readable(principal: Principal) -> list[str]:
    return list(principal.backends_for(Verb.READ))


async def status(ctx: Context, principal: Principal, rap_ids: Sequence[RapId]) -> StatusReport:
    """The jobs of these RAPs; ids of unknown and of foreign RAPs look the same (reference section 1.5)."""
    wanted = list(dict.fromkeys(rap_ids))
    async with ctx.db.connection() as tx:
        found = await jobs.of_raps.all(tx, rap_ids=wanted, backends=_readable(principal)) if wanted else []
    known = {job.spec.rap_id for job in found}
    return StatusReport(jobs=tuple(found), unrecognised=tuple(r for r in wanted if r not in known))


async def active_others(ctx: Context, principal: Principal, asked: Sequence[RapId]) -> Sequence[RapId]:
    """The caller's RAPs that are not finished and not among these, a thousand at most (reference section 1.7)."""
    async with ctx.db.connection() as tx:
        found = await raps.active_others.all(tx, backends=_readable(principal), asked=list(asked), most=_MOST_OTHERS)
    return [RapId(rap_id) for rap_id in found]


async def backend_views(ctx: Context, principal: Principal) -> Sequence[BackendView]:
    """The caller's backends in the configured order, even if no agent was ever seen (reference section 1.2)."""
    slugs = _readable(principal)
    async with ctx.db.connection() as tx:
        seen = {row.backend: row.at for row in await backends.seen.all(tx, backends=slugs)}
        flags = await backends.flags.all(tx, backends=slugs)
        checks = await _last_checks(ctx, tx, slugs)

    def view(slug: str) -> BackendView:
        mine = [row for row in flags if row.backend == slug]
        modes, changed = backends.modes_of(mine), {row.id: row.changed_at for row in mine}
        return BackendView(
            slug=slug,
            last_seen=seen.get(slug),
            paused=modes.paused_shown,
            paused_since=changed.get(Flag.PAUSED),
            db_maintenance=modes.db_maintenance,
            db_maintenance_since=changed.get(Flag.MODE),
            db_maintenance_type=("manual" if modes.manual_shown else "scheduled") if modes.db_maintenance else None,
            checks=tuple(check for backend, check in checks if backend == slug),
        )

    return [view(slug) for slug in slugs]


async def _last_checks(ctx: Context, tx: Tx, slugs: Iterable[str]) -> list[tuple[str, CheckView]]:
    """How the last check of each kind ended, by backend."""
    checked = [slug for slug in slugs if slug in ctx.backends and ctx.backends[slug].checks]
    rows = await tasks.last_checks.all(tx, backends=checked) if checked else []

    def view(row: tasks.LastCheckRow) -> CheckView:
        kind = TaskType(row.type)
        allowed = row.status is not None and row.status in ALLOWED_ANSWERS[kind]
        return CheckView(kind=kind, finished_at=row.finished_at, answer=row.status if allowed else None)

    return [(row.backend, view(row)) for row in rows if TaskType(row.type) in ctx.backends[row.backend].checks]


async def rap_detail(ctx: Context, principal: Principal, rap_id: RapId) -> RapDetail:
    """A RAP with everything known about its jobs.

    :raises NotFound: no such RAP for this caller.
    """
    slugs = _readable(principal)
    async with ctx.db.connection() as tx:
        row = await raps.summary.one(tx, id=rap_id, backends=slugs)
        if row is None:
            raise NotFound(f"No RAP {rap_id}", rap_id=rap_id)
        found = await jobs.of_raps.all(tx, rap_ids=[rap_id], backends=slugs)
        return RapDetail(rap=rap_summary(row), jobs=await _details(ctx, tx, found))


async def job_detail(ctx: Context, principal: Principal, job_id: JobId) -> JobDetail:
    """One job.

    :raises NotFound: no such job for this caller.
    """
    async with ctx.db.connection() as tx:
        job = await _visible_job(tx, principal, job_id)
        (detail,) = await _details(ctx, tx, [job])
        return detail


async def job_log(
    ctx: Context, principal: Principal, job_id: JobId, *, attempt: int | None, offset: int, limit: int
) -> LogPage:
    """A part of a job's log: of one attempt, or of the newest.

    :raises NotFound: no such job for this caller.
    """
    async with ctx.db.connection() as tx:
        job = await _visible_job(tx, principal, job_id)
        chosen = job.progress.attempt if attempt is None else attempt
        length = await jobs.log_length.one(tx, job_id=job_id, attempt=chosen) or 0
        chunks = await jobs.read_log.all(tx, job_id=job_id, attempt=chosen, start=offset, stop=offset + limit)
    text = "".join(chunk.text[max(0, offset - chunk.start) :] for chunk in chunks)[:limit]
    end = offset + len(text)
    final = job.progress.state.is_terminal or chosen < job.progress.attempt
    return LogPage(
        job_id=job_id,
        attempt=chosen,
        text=text,
        next_offset=end,
        complete=final and end >= length,
        truncated=length >= ctx.log_bytes,
    )


async def agent_views(ctx: Context, principal: Principal) -> Sequence[AgentView]:
    """The agents of the caller's backends."""
    silent_since = ctx.clock.now() - timedelta(seconds=ctx.lease_seconds)
    async with ctx.db.connection() as tx:
        rows = await backends.agents.all(tx, backends=_readable(principal))
    return [
        AgentView(
            id=row.id,
            backend=row.backend,
            version=row.version,
            executor=row.executor,
            slots=row.slots,
            last_seen=row.last_seen_at,
            egress=row.egress,
            policy=releases.words(row.egress),
            on_loss=row.on_loss,
            load=row.load,
            silent=row.last_seen_at < silent_since,
        )
        for row in rows
    ]


async def _visible_job(tx: Tx, principal: Principal, job_id: JobId) -> Job:
    job = await jobs.find.one(tx, id=job_id, backends=_readable(principal))
    if job is None:
        raise NotFound(f"No job {job_id}", job_id=job_id)
    return job


async def _details(ctx: Context, tx: Tx, found: Sequence[Job]) -> tuple[JobDetail, ...]:
    """Outputs, history and holder of these jobs: one query each, however many jobs."""
    ids = [job.id for job in found]
    outputs = _by_job(await jobs.outputs.all(tx, ids=ids))
    history = _by_job(await jobs.history.all(tx, ids=ids))
    holders = {row.job_id: row for row in await tasks.holders.all(tx, job_ids=ids)}
    return tuple(
        JobDetail(
            job=job,
            outputs=tuple(
                OutputView(
                    path=row.path,
                    level=row.level,
                    size=row.size,
                    sha256=row.sha256,
                    excluded=row.excluded,
                    message=row.message,
                    released_by=row.released_by,
                    released_at=row.released_at,
                )
                for row in outputs[job.id]
            ),
            history=tuple(
                HistoryEntry(
                    at=row.at,
                    attempt=row.attempt,
                    state=JobState(row.state),
                    code=StatusCode(row.code),
                    message=row.message,
                )
                for row in history[job.id]
            ),
            agent=holders[job.id].agent if job.id in holders else None,
            exit_code=holders[job.id].exit_code if job.id in holders else None,
            limits=_limits(ctx, job, holders.get(job.id)),
        )
        for job in found
    )


def _limits(ctx: Context, job: Job, holder: tasks.HolderRow | None) -> JobLimits | None:
    """As the newest attempt was told; before the first, as it would be told now."""
    if holder is not None and holder.cpu_count is not None and holder.memory_limit is not None:
        return JobLimits(cpu_count=holder.cpu_count, memory_limit=holder.memory_limit, time_limit=holder.time_limit)
    backend = ctx.backends.get(job.spec.backend)
    return backend.terms.ordinary.adapted(job.spec.resources) if backend else None


def _by_job(rows: Iterable[Any]) -> defaultdict[str, list[Any]]:
    grouped: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:
        grouped[row.job_id].append(row)
    return grouped
