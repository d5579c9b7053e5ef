"""Reports: what agents say of their tasks, as one compare-and-set per batch.

All reports of a batch are judged in their order against the rows as they are under the backend's lock; then tasks,
jobs and history are written in one statement each. Repeating a batch changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import structlog

from common.protocol import LogAnswer, LogChunk, ReportAnswer, ReportsRequest, ReportsResponse, Verdict
from controller.core import happenings
from controller.core.errors import NotFound, Rejected
from controller.core.machine import Progressed
from controller.core.model import Flag, TaskType
from controller.core.reports import Statement
from controller.core.storable import storable, storable_text
from controller.engine import releasing
from controller.engine.batch import Batch, JobInBatch
from controller.engine.context import Context
from controller.engine.moves import announce
from controller.store import backends, events, jobs, samples, tasks
from controller.store.queries import Tx

log = structlog.get_logger(__name__)


async def report(ctx: Context, backend: str, request: ReportsRequest) -> ReportsResponse:
    """Apply a batch of one agent's reports; one answer each, in their order."""
    statements = [
        Statement(
            task_id=each.task_id,
            attempt=each.attempt,
            agent=request.agent,
            stage=each.stage,
            complete=each.complete,
            results=storable(each.results),
            timestamp_ns=each.timestamp_ns,
            metrics=each.metrics,
        )
        for each in request.reports
    ]
    return ReportsResponse(answers=tuple(await _take_all(ctx, backend, statements)))


async def update_task(
    ctx: Context,
    backend: str,
    *,
    task_id: str,
    stage: str,
    results: Mapping[str, Any],
    complete: bool,
    timestamp_ns: int | None,
) -> None:
    """One report by the Task API. Late and repeated ones change nothing and are no error (reference section 2.2).

    :raises NotFound: no such task on this backend.
    :raises Rejected: a final report that could not be understood; its job has been failed with that message.
    """
    statement = Statement(
        task_id=task_id,
        attempt=None,
        agent=None,
        stage=stage,
        complete=complete,
        results=storable(results),
        timestamp_ns=timestamp_ns,
    )
    (answer,) = await _take_all(ctx, backend, [statement])
    if answer.verdict is Verdict.UNKNOWN:
        raise NotFound(f"Task '{task_id}' not found on backend '{backend}'", task_id=task_id)
    if answer.verdict is Verdict.INVALID:
        raise Rejected(f"Task '{task_id}': {answer.detail}", task_id=task_id)


async def _take_all(ctx: Context, backend: str, statements: Sequence[Statement]) -> list[ReportAnswer]:
    now = ctx.clock.now()
    async with ctx.db.transaction() as tx:
        await backends.lock.run(tx, backend=backend)
        locked = await tasks.lock.all(tx, backend=backend, ids=[storable_text(s.task_id) for s in statements])
        job_ids = [task.job_id for task in locked if task.job_id is not None]
        batch = Batch(
            tasks={task.id: task for task in locked},
            jobs={job.id: JobInBatch(job=job, current=job) for job in await jobs.lock.all(tx, ids=job_ids)},
            now=now,
            retry=ctx.retry,
            jitter=ctx.jitter,
        )
        if batch.needs_modes:
            batch.modes = await backends.modes(tx, backend)
        answers = batch.take_all(statements)
        await _write(tx, backend, batch)
        if batch.releases:
            await releasing.settle(ctx, tx, backend, batch.releases, now)
    announce(ctx, [job.move for job in batch.jobs.values()])
    if batch.data_check_failed:
        log.warning("data_check_failed", backend=backend)
    for answer in answers:
        if answer.verdict in (Verdict.INVALID, Verdict.UNKNOWN):
            log.warning("report_refused", backend=backend, task_id=answer.task_id, detail=answer.detail)
    return answers


async def _write(tx: Tx, backend: str, batch: Batch) -> None:
    changed = [job for job in batch.jobs.values() if job.changed]
    if batch.task_changes:
        await tasks.write.run(tx, changes=list(batch.task_changes.values()), now=batch.now)
    if changed:
        await samples.add(tx, [job.current for job in changed if job.measured], batch.now)
        await jobs.write(tx, [job.move for job in changed])
    for job in changed:
        if job.outputs is not None:
            await jobs.replace_outputs.run(
                tx, job_id=job.job.id, outputs=[attrs.asdict(output) for output in job.outputs]
            )
    await _set_mode(tx, backend, batch)
    if batch.found_modes or any(not isinstance(each.event, Progressed) for job in changed for each in job.transitions):
        await backends.notify.run(tx, channel=backends.SCHEDULE_CHANNEL, backend=backend)


async def _set_mode(tx: Tx, backend: str, batch: Batch) -> None:
    """A DBSTATUS result sets the mode, unless an operator has set it by hand (reference section 2.2)."""
    if not batch.found_modes or batch.modes.manual:
        return
    found = batch.found_modes[-1]
    if await backends.set_flag.one(tx, backend=backend, id=Flag.MODE, value=found, now=batch.now) is not None:
        await events.record(tx, backend, [happenings.of_flags({Flag.MODE: found}, batch.now)])


async def append_log(ctx: Context, backend: str, chunk: LogChunk) -> LogAnswer:
    """Store a chunk of a job's log where it belongs; a repeated or premature one is answered with where to go on.

    :raises NotFound: the task is not this agent's on this backend.
    """
    async with ctx.db.transaction() as tx:
        locked = await tasks.lock.all(tx, backend=backend, ids=[storable_text(chunk.task_id)])
        if not locked or locked[0].agent != chunk.agent or locked[0].type != TaskType.RUNJOB:
            raise NotFound(f"Task '{chunk.task_id}' is not held by this agent", task_id=chunk.task_id)
        key = {"job_id": locked[0].job_id, "attempt": locked[0].attempt}
        stored = await jobs.log_length.one(tx, **key) or 0
        text = storable_text(chunk.text)[max(0, stored - chunk.offset) :] if chunk.offset <= stored else ""
        text = text[: max(0, ctx.log_bytes - stored)]
        if text:
            await jobs.append_log.run(tx, **key, start=stored, text=text)
    length = stored + len(text)
    return LogAnswer(next_offset=length, accepting=length < ctx.log_bytes)
