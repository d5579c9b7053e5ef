"""Letting outputs out that somebody has reviewed.

A reviewer's word becomes a task for the backend's agents, of our own protocol only. Whether an output may leave is the
agent's to say, by its own policy; what it says it has let out is stored as outputs of the job, with who and when. The
task stays until it is answered, so a restart on either side loses nothing. An agent that lacks the job's files says so,
and another one is asked.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from attrs import frozen

from common.ids import release_task_id
from controller.core.errors import Conflict, Forbidden, NotFound
from controller.core.model import Job, JobId, Principal, TaskType, Verb
from controller.core.releases import (
    Asked,
    Release,
    SenselessAnswer,
    may_ask_another,
    read_answer,
    released_of,
    summarise,
    wants_review,
)
from controller.engine.batch import LONGEST_PATH
from controller.engine.context import Context
from controller.store import backends, jobs, tasks
from controller.store.queries import Tx

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class ReleaseAsked:
    """What asking for a release did."""

    job_id: JobId
    changed: bool
    """False if the same was asked for before and is not answered yet: then it is that release."""
    release: Release


async def release(ctx: Context, principal: Principal, job_id: JobId, paths: Sequence[str] | None) -> ReleaseAsked:
    """Have outputs of a finished job let out; the answer says how the release is called, not yet what came of it.

    :param paths: None: all that the policy of the backend lets out after a review.
    :raises NotFound: no such job for this caller.
    :raises Forbidden: the caller may not release outputs of its backend.
    :raises Conflict: the job is not finished, or no agent of the backend has a policy with a review.
    """
    now = ctx.clock.now()
    async with ctx.db.transaction() as tx:
        job = await _lock_job(tx, principal, job_id)
        backend = job.spec.backend
        if not job.progress.state.is_terminal:
            raise Conflict(
                f"Job {job_id} is {job.progress.state.value}: outputs can be released once it is finished.",
                job_id=job_id,
            )
        if not any(wants_review(agent.egress) for agent in await backends.agents.all(tx, backends=[backend])):
            raise Conflict(
                f"No agent of backend {backend!r} has a policy with a review (RAP_EGRESS with"
                " +outputs:<level>:reviewed): there is nothing that a release could let out.",
                backend=backend,
            )
        asked = [_asked(row) for row in await tasks.releases.all(tx, job_id=job_id)]
        wanted = None if paths is None else tuple(sorted(set(paths)))
        same = next((each for each in asked if each.active and each.paths == wanted), None)
        number = same.release if same else (asked[-1].attempt if asked else 0) + 1
        if same is None:
            await _ask(tx, job, attempt=number, release=number, by=principal.name, paths=wanted, absent=(), now=now)
            asked = [_asked(row) for row in await tasks.releases.all(tx, job_id=job_id)]
    if same is None:
        log.info(
            "release_asked",
            job_id=job_id,
            backend=backend,
            release=number,
            paths=None if wanted is None else len(wanted),
            principal=principal.name,
        )
    made = next(each for each in summarise(asked) if each.number == number)
    return ReleaseAsked(job_id=job_id, changed=same is None, release=made)


async def releases(ctx: Context, principal: Principal, job_id: JobId) -> Sequence[Release]:
    """The releases of a job, oldest first, as far as they were not pruned.

    :raises NotFound: no such job for this caller.
    """
    async with ctx.db.connection() as tx:
        if await jobs.find.one(tx, id=job_id, backends=list(principal.backends_for(Verb.READ))) is None:
            raise NotFound(f"No job {job_id}", job_id=job_id)
        return summarise([_asked(row) for row in await tasks.releases.all(tx, job_id=job_id)])


async def settle(ctx: Context, tx: Tx, backend: str, answered: Mapping[str, JobId], now: datetime) -> None:
    """Store what agents have let out, and ask another agent where one lacked the files.

    :param tx: holds the backend's lock, and has written the answers.
    :param answered: task -> its job.
    """
    for job_id in dict.fromkeys(answered.values()):
        asked = [_asked(row) for row in await tasks.releases.all(tx, job_id=job_id)]
        attempts = itertools.count(asked[-1].attempt + 1 if asked else 1)  # several may be answered together
        for each in asked:
            if each.task_id in answered:
                await _settle(ctx, tx, backend, job_id, each, attempts, now)
    # An agent has so many at once, and has room for another one now.
    await backends.notify.run(tx, channel=backends.TASKS_CHANNEL, backend=backend)


async def _settle(
    ctx: Context, tx: Tx, backend: str, job_id: JobId, asked: Asked, attempts: Iterator[int], now: datetime
) -> None:
    try:
        answer = read_answer(asked.results)
    except SenselessAnswer:
        return  # its task is over, and the release failed with that
    if may_ask_another(answer):
        await _ask_another(ctx, tx, backend, job_id, asked, attempts, now)
        return
    outputs = [
        {"path": output.path, "level": output.level, "size": output.size, "sha256": output.sha256}
        for output in released_of(asked, answer)
        if len(output.path.encode()) <= LONGEST_PATH
    ]
    await jobs.release_outputs.run(tx, job_id=job_id, outputs=outputs, by=asked.by, at=now)
    log.info(
        "outputs_released",
        job_id=job_id,
        backend=backend,
        release=asked.release,
        agent=asked.agent,
        outputs=len(outputs),
        refused=len(answer.refused),
        principal=asked.by,
    )


async def _ask_another(
    ctx: Context, tx: Tx, backend: str, job_id: JobId, asked: Asked, attempts: Iterator[int], now: datetime
) -> None:
    """Put the same question to an agent that is alive and was not asked yet; without one, the release has failed."""
    absent = (*asked.absent, *([asked.agent] if asked.agent else []))
    alive_since = now - timedelta(seconds=ctx.lease_seconds)
    others = [
        agent.id
        for agent in await backends.agents.all(tx, backends=[backend])
        if wants_review(agent.egress) and agent.last_seen_at >= alive_since and agent.id not in absent
    ]
    log.warning("release_files_absent", job_id=job_id, backend=backend, agent=asked.agent, others=others)
    (job,) = await jobs.lock.all(tx, ids=[job_id])
    if others:
        await _ask(
            tx,
            job,
            attempt=next(attempts),
            release=asked.release,
            by=asked.by,
            paths=asked.paths,
            absent=absent,
            now=now,
        )


async def _lock_job(tx: Tx, principal: Principal, job_id: JobId) -> Job:
    """The job whose outputs somebody wants to release, under its backend's lock."""
    found = await jobs.find.one(tx, id=job_id, backends=list(principal.backends))
    if found is None:
        raise NotFound(f"No job {job_id}", job_id=job_id)
    backend = found.spec.backend
    if not principal.may(Verb.REVIEW, backend):
        raise Forbidden(f"This token may use backend {backend!r}, but not release outputs there.", backend=backend)
    await backends.lock.run(tx, backend=backend)
    locked = await jobs.lock.all(tx, ids=[job_id])
    if not locked:
        raise NotFound(f"No job {job_id}", job_id=job_id)  # pruned in between
    return locked[0]


async def _ask(
    tx: Tx,
    job: Job,
    *,
    attempt: int,
    release: int,
    by: str,
    paths: tuple[str, ...] | None,
    absent: Iterable[str],
    now: datetime,
) -> None:
    """Write a task; its definition is `common.protocol.ReleaseDefinition`, and what only we need."""
    row: dict[str, Any] = {
        "id": release_task_id(job.id, attempt),
        "backend": job.spec.backend,
        "type": TaskType.RELEASE,
        "job_id": job.id,
        "attempt": attempt,
        "definition": {
            "job_id": job.id,
            "created_at": int(job.spec.created_at.timestamp()),
            "workspace": job.spec.workspace,
            "by": by,
            "paths": paths,
            "release": release,
            "absent": list(absent),
        },
        "attributes": {},
        "traceparent": job.spec.traceparent,
        "for_agent": None,
        "created_at": now,
    }
    await tasks.insert.run(tx, tasks=[row])
    await backends.notify.run(tx, channel=backends.TASKS_CHANNEL, backend=job.spec.backend)


def _asked(row: tasks.ReleaseRow) -> Asked:
    definition = row.definition
    paths = definition["paths"]
    return Asked(
        task_id=row.id,
        attempt=row.attempt,
        release=definition["release"],
        by=definition["by"],
        paths=None if paths is None else tuple(paths),
        absent=tuple(definition["absent"]),
        agent=row.agent,
        active=row.active,
        results=row.results,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
