"""The store's side of giving out and taking back work: RUNJOB and CANCELJOB tasks."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from common.ids import cancel_task_id, task_id
from controller.core.definition import Owner, Terms, attributes, cancel_definition, run_definition
from controller.core.model import Job, JobId, TaskId, TaskType
from controller.store import backends, jobs, raps, tasks
from controller.store.queries import Tx


async def owners_of(tx: Tx, wanted: Sequence[Job]) -> dict[str, Owner]:
    """RAP id -> who asked for it."""
    rows = await raps.owners.all(tx, ids=list({job.spec.rap_id for job in wanted}))
    return {row.id: Owner(user=row.created_by, project=row.project, orgs=tuple(row.orgs)) for row in rows}


async def inputs_of(tx: Tx, backend: str, wanted: Sequence[Job]) -> dict[JobId, list[JobId]]:
    """Job id -> the newest jobs of its needed actions at this moment (edge behaviour 21)."""
    pairs = list({(job.spec.workspace, action) for job in wanted for action in job.spec.needs})
    latest = await jobs.latest_in(tx, backend, pairs) if pairs else {}
    return {
        job.id: [latest[key].id for action in job.spec.needs if (key := (job.spec.workspace, action)) in latest]
        for job in wanted
    }


def run_task(
    job: Job, attempt: int, owner: Owner, inputs: Sequence[JobId], terms: Terms, now: datetime
) -> dict[str, Any]:
    """The row of a RUNJOB task."""
    identifier = TaskId(task_id(job.id, attempt))
    return {
        "id": identifier,
        "backend": job.spec.backend,
        "type": TaskType.RUNJOB,
        "job_id": job.id,
        "attempt": attempt,
        "definition": run_definition(job, identifier, owner, inputs, terms),
        "time_limit": terms.ordinary.adapted(job.spec.resources).time_limit,
        "attributes": attributes(owner),
        "traceparent": job.spec.traceparent,
        "for_agent": None,
        "created_at": now,
    }


async def stop_runs(tx: Tx, backend: str, job_ids: Sequence[JobId], now: datetime) -> None:
    """Void the jobs' active attempts and tell whoever runs them to stop (edge behaviour 14).

    Only attempts that are still active get a CANCELJOB task; it goes to the agent that holds the attempt.
    """
    voided = await tasks.void_runs.all(tx, job_ids=list(job_ids), now=now)
    if not voided:
        return
    await tasks.insert.run(
        tx,
        tasks=[
            {
                "id": cancel_task_id(row.id),
                "backend": backend,
                "type": TaskType.CANCELJOB,
                "job_id": row.job_id,
                "attempt": row.attempt,
                "definition": cancel_definition(row.definition),
                "attributes": row.attributes,
                "traceparent": row.traceparent,
                "for_agent": row.agent,
                "created_at": now,
            }
            for row in voided
        ],
    )
    await backends.notify.run(tx, channel=backends.TASKS_CHANNEL, backend=backend)
