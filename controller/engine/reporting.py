"""Reports: what agents say of their tasks, as one compare-and-set per batch.

All reports of a batch are judged in their order against the rows as they are under the backend's lock; then tasks,
jobs and history are written in one statement each. Repeating a batch changes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import attrs
import structlog
from attrs import define, field, frozen
from attrs.validators import ge, lt

from common.convert import Malformed, structure
from common.protocol import LogAnswer, LogChunk, ReportAnswer, ReportsRequest, ReportsResponse, Verdict
from controller.core.errors import NotFound, Rejected
from controller.core.machine import IllegalTransition, Progressed, Transition, step
from controller.core.model import Job, TaskType
from controller.core.reports import Judgement, Statement, TaskState, database_mode, judge
from controller.engine.context import Context
from controller.engine.scheduling import log_transitions
from controller.store import backends, jobs, tasks
from controller.store.queries import Tx
from controller.store.tasks import LockedTask

log = structlog.get_logger(__name__)

_MOST_FLOAT: Final = 10**308

LONGEST_PATH: Final = 2000
"""Bytes of an output's path; an entry of the index on it has room for little more."""


def _check_path(_: object, __: object, path: str) -> None:
    if not 0 < len(path.encode()) <= LONGEST_PATH:
        raise ValueError(f"must have 1 to {LONGEST_PATH} bytes")


@frozen(kw_only=True)
class ReportedOutput:
    """One entry of `outputs` in a final report of ours."""

    path: str = field(validator=_check_path)
    level: str
    size: int = field(validator=[ge(0), lt(2**63)])
    sha256: str
    excluded: bool = False
    message: str = ""


@define
class _JobMoves:
    """A job while a batch is judged."""

    job: Job
    now: Job
    transitions: list[Transition] = field(factory=list)
    outputs: Sequence[ReportedOutput] | None = None


@define
class _Batch:
    """The rows that a batch of statements is about, and what is to be written of them."""

    tasks: dict[str, LockedTask]
    jobs: dict[str, _JobMoves]
    now: datetime
    task_changes: dict[str, dict[str, Any]] = field(factory=dict)
    modes: list[str] = field(factory=list)

    def take(self, statement: Statement) -> ReportAnswer:
        """Judge one statement against the rows as the earlier ones leave them."""
        task = self.tasks.get(statement.task_id)
        moves = self.jobs.get(task.job_id) if task and task.job_id else None
        judgement = judge(statement, _state(task) if task else None, moves.now if moves else None)
        if judgement.applied and task is not None:
            judgement = self._apply(statement, task, moves, judgement)
        return ReportAnswer(task_id=statement.task_id, verdict=judgement.verdict, detail=judgement.detail)

    def _apply(
        self, statement: Statement, task: LockedTask, moves: _JobMoves | None, judgement: Judgement
    ) -> Judgement:
        outputs: Sequence[ReportedOutput] = ()
        if statement.complete:
            try:
                outputs = _outputs(statement)
            except Malformed as error:
                log.warning("outputs_malformed", task_id=task.id, faults=error.faults)
        if moves and task.type == TaskType.RUNJOB:
            if judgement.event is not None:
                try:
                    move = step(moves.now.progress, judgement.event, self.now)
                except IllegalTransition as error:
                    return Judgement(verdict=Verdict.INVALID, detail=str(error))
                moves.transitions.append(move)
                moves.now = attrs.evolve(moves.now, progress=move.after)
            moves.now = attrs.evolve(moves.now, metrics=_metrics(statement) or moves.now.metrics)
            moves.outputs = outputs if statement.complete else moves.outputs
        if task.type == TaskType.DBSTATUS and statement.complete and judgement.verdict is Verdict.APPLIED:
            mode = database_mode(statement.results)
            self.modes += [] if mode is None else [mode.partition(";")[0].replace("none", "")]
        self.tasks[task.id] = attrs.evolve(
            task,
            stage=statement.stage,
            complete=statement.complete,
            active=not statement.complete,
        )
        self.task_changes[task.id] = {
            "id": task.id,
            "stage": statement.stage,
            "results": {k: v for k, v in statement.results.items() if k != "outputs"},
            "complete": statement.complete,
            "timestamp_ns": statement.timestamp_ns,
        }
        return judgement


def _state(task: LockedTask) -> TaskState:
    return TaskState(
        type=TaskType(task.type),
        attempt=task.attempt,
        agent=task.agent,
        active=task.active,
        complete=task.complete,
    )


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
        locked = await tasks.lock.all(tx, backend=backend, ids=[_clean(s.task_id) for s in statements])
        job_ids = [task.job_id for task in locked if task.job_id is not None]
        batch = _Batch(
            tasks={task.id: task for task in locked},
            jobs={job.id: _JobMoves(job=job, now=job) for job in await jobs.lock.all(tx, ids=job_ids)},
            now=now,
        )
        answers = [batch.take(statement) for statement in statements]
        await _write(tx, backend, batch)
    for moved in batch.jobs.values():
        log_transitions(moved.job, moved.transitions)
    for answer in answers:
        if answer.verdict in (Verdict.INVALID, Verdict.UNKNOWN):
            log.warning("report_refused", backend=backend, task_id=answer.task_id, detail=answer.detail)
    return answers


async def _write(tx: Tx, backend: str, batch: _Batch) -> None:
    moved = [m for m in batch.jobs.values() if m.now != m.job]
    if batch.task_changes:
        await tasks.write.run(tx, changes=list(batch.task_changes.values()), now=batch.now)
    if moved:
        await jobs.write(tx, [(m.job, m.transitions, m.now.metrics) for m in moved])
    for each in moved:
        if each.outputs is not None:
            await jobs.replace_outputs.run(
                tx, job_id=each.job.id, outputs=[attrs.asdict(output) for output in each.outputs]
            )
    await _set_modes(tx, backend, batch)
    if batch.modes or any(not isinstance(t.event, Progressed) for m in moved for t in m.transitions):
        await backends.notify.run(tx, channel=backends.SCHEDULE_CHANNEL, backend=backend)


async def _set_modes(tx: Tx, backend: str, batch: _Batch) -> None:
    """A DBSTATUS result sets the mode, unless an operator has set it by hand (reference section 2.2)."""
    if not batch.modes:
        return
    flags = {flag.id: flag.value for flag in await backends.flags.all(tx, backends=[backend])}
    if not flags.get("manual-db-maintenance"):
        await backends.set_flag.run(tx, backend=backend, id="mode", value=batch.modes[-1], now=batch.now)


async def append_log(ctx: Context, backend: str, chunk: LogChunk) -> LogAnswer:
    """Store a chunk of a job's log where it belongs; a repeated or premature one is answered with where to go on.

    :raises NotFound: the task is not this agent's on this backend.
    """
    async with ctx.db.transaction() as tx:
        locked = await tasks.lock.all(tx, backend=backend, ids=[_clean(chunk.task_id)])
        if not locked or locked[0].agent != chunk.agent or locked[0].job_id is None:
            raise NotFound(f"Task '{chunk.task_id}' is not held by this agent", task_id=chunk.task_id)
        key = {"job_id": locked[0].job_id, "attempt": locked[0].attempt}
        stored = await jobs.log_length.one(tx, **key) or 0
        text = _clean(chunk.text)[max(0, stored - chunk.offset) :] if chunk.offset <= stored else ""
        text = text[: max(0, ctx.log_bytes - stored)]
        if text:
            await jobs.append_log.run(tx, **key, start=stored, text=text)
    length = stored + len(text)
    return LogAnswer(next_offset=length, accepting=length < ctx.log_bytes)


def _metrics(statement: Statement) -> dict[str, float]:
    """The numbers among the reported metrics."""
    reported = statement.results.get("job_metrics") or statement.metrics
    items: Iterable[tuple[Any, Any]] = reported.items() if isinstance(reported, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, int | float) and not isinstance(value, bool)}


def _outputs(statement: Statement) -> Sequence[ReportedOutput]:
    """The outputs that a final report names, each path once.

    :raises Malformed: they are not what they should be.
    """
    named = structure(statement.results.get("outputs", []), tuple[ReportedOutput, ...])
    return tuple({output.path: output for output in named}.values())


def storable(value: Any) -> Any:
    """JSON data without what PostgreSQL cannot store (NUL, lone surrogates), or what no 64 bits hold (rounded)."""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, Mapping):
        return {_clean(str(key)): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value) if abs(value) < _MOST_FLOAT else None
    return value


def _clean(text: str) -> str:
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()
