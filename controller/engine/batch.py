"""A batch of statements, judged one after the other: what is to be written of the rows that they are about.

No row is read or written here: `reporting` brings the rows, held under the backend's lock, and writes the outcome.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import attrs
import structlog
from attrs import define, field, frozen
from attrs.validators import ge, lt

from common.convert import Malformed, structure
from common.protocol import ReportAnswer, Verdict
from controller.core import checks
from controller.core.codes import StatusCode
from controller.core.machine import Event, Failed, IllegalTransition, Move, Reset, Transition, step
from controller.core.model import DB_MAINTENANCE, Job, JobId, TaskType
from controller.core.modes import Modes
from controller.core.reports import Statement, TaskState, judge
from controller.core.retry import RetryPolicy

log = structlog.get_logger(__name__)

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
class JobInBatch:
    """A job while a batch is judged."""

    job: Job
    """As the batch found it."""
    current: Job
    """As the statements judged so far leave it."""
    transitions: list[Transition] = field(factory=list)
    outputs: Sequence[ReportedOutput] | None = None
    """None: no final report came, so what is known stays."""

    @property
    def changed(self) -> bool:
        """Whether anything of the job's row is new."""
        return self.current != self.job

    @property
    def measured(self) -> bool:
        """Whether its newest attempt told something new of what it uses."""
        current = self.current
        return bool(current.metrics) and (
            current.metrics != self.job.metrics or current.progress.attempt != self.job.progress.attempt
        )

    @property
    def move(self) -> Move:
        """What is to be written of it."""
        return Move(job=self.job, transitions=self.transitions, metrics=self.current.metrics)

    def take(self, statement: Statement, event: Event | None, now: datetime) -> None:
        """Apply one statement about the job's running attempt.

        :raises IllegalTransition: the job's state does not allow the event; nothing is applied.
        """
        progress = self.current.progress
        if event is not None:
            transition = step(progress, event, now)
            self.transitions.append(transition)
            progress = transition.after
        self.current = attrs.evolve(
            self.current, progress=progress, metrics=_metrics(statement) or self.current.metrics
        )
        if progress.state.is_terminal:  # what a void attempt made is nobody's
            self.outputs = _outputs(statement)


@define
class Batch:
    """The rows that statements are about, and what is to be written of them."""

    tasks: dict[str, TaskState]
    jobs: dict[str, JobInBatch]
    now: datetime
    retry: RetryPolicy
    jitter: Callable[[], float]
    task_changes: dict[str, dict[str, Any]] = field(factory=dict)
    found_modes: list[str] = field(factory=list)
    """What DBSTATUS tasks have found, in the order of the statements; of no effect in manual maintenance."""
    modes: Modes = field(factory=Modes)
    """The backend's as they were before the batch; only known where they matter."""
    releases: dict[str, JobId] = field(factory=dict)
    """RELEASE tasks that were answered, and their jobs."""
    data_check_failed: bool = False
    """Whether a DBDATACHECK task found the database's data older than they should be."""

    @property
    def needs_modes(self) -> bool:
        """Whether the batch may set the mode, or be judged by it: then `modes` must be known."""
        return any(task.type is TaskType.DBSTATUS for task in self.tasks.values()) or any(
            job.job.spec.requires_db for job in self.jobs.values()
        )

    def take_all(self, statements: Sequence[Statement]) -> list[ReportAnswer]:
        """Judge statements in their order, but for what is said of the database: that comes first.

        A job that failed because of the database's maintenance may be told of together with the maintenance.
        """
        order = sorted(range(len(statements)), key=lambda place: not self._is_status(statements[place]))
        answers = {place: self.take(statements[place]) for place in order}
        return [answers[place] for place in range(len(statements))]

    def _is_status(self, statement: Statement) -> bool:
        task = self.tasks.get(statement.task_id)
        return task is not None and task.type is TaskType.DBSTATUS

    def take(self, statement: Statement) -> ReportAnswer:
        """Judge one statement against the rows as the earlier ones leave them."""
        task = self.tasks.get(statement.task_id)
        job = self.jobs.get(task.job_id) if task and task.job_id else None
        judgement = judge(
            statement,
            task,
            job.current if job else None,
            retry=self.retry,
            jitter=self.jitter(),
        )
        if judgement.applied and task is not None:
            if job is not None and task.type is TaskType.RUNJOB:
                try:
                    job.take(statement, self._excuse(job.current, judgement.event), self.now)
                except IllegalTransition as error:
                    return ReportAnswer(task_id=statement.task_id, verdict=Verdict.INVALID, detail=str(error))
            if judgement.verdict is Verdict.APPLIED:
                self._note_check(task, statement)
                if task.type is TaskType.RELEASE and statement.complete and task.job_id is not None:
                    self.releases[task.id] = task.job_id
            self._change(task, statement)
        return ReportAnswer(task_id=statement.task_id, verdict=judgement.verdict, detail=judgement.detail)

    def _excuse(self, job: Job, event: Event | None) -> Event | None:
        """A database job that exits with an error while the database is in maintenance waits for the end of that.

        The next scheduling pass would have sent it back in any case; its exit was only faster (section 8, no. 15).
        """
        maintained = self.modes.db_maintenance
        if self.found_modes and not self.modes.manual:
            maintained = self.found_modes[-1] == DB_MAINTENANCE
        failed = isinstance(event, Failed) and event.code is StatusCode.NONZERO_EXIT
        if failed and job.spec.requires_db and maintained:
            return Reset(code=StatusCode.WAITING_DB_MAINTENANCE)
        return event

    def _note_check(self, task: TaskState, statement: Statement) -> None:
        if not statement.complete or task.type not in checks.INTERVALS:
            return
        found = checks.answer(statement.results)
        if task.type is TaskType.DBSTATUS and found is not None:
            self.found_modes.append(found.partition(";")[0].replace("none", ""))
        if task.type is TaskType.DBDATACHECK and found == checks.DATA_CHECK_FAILED:
            self.data_check_failed = True

    def _change(self, task: TaskState, statement: Statement) -> None:
        self.tasks[task.id] = attrs.evolve(task, complete=statement.complete, active=not statement.complete)
        self.task_changes[task.id] = {
            "id": task.id,
            "stage": statement.stage,
            "results": {key: value for key, value in statement.results.items() if key != "outputs"},
            "complete": statement.complete,
            "timestamp_ns": statement.timestamp_ns,
        }


def _metrics(statement: Statement) -> dict[str, float]:
    """The numbers among the reported metrics."""
    reported = statement.results.get("job_metrics") or statement.metrics
    items: Iterable[tuple[Any, Any]] = reported.items() if isinstance(reported, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, int | float) and not isinstance(value, bool)}


def _outputs(statement: Statement) -> Sequence[ReportedOutput]:
    """The outputs that a final report names, each path once; none if they are not what they should be.

    A job is not failed for a list that only tells what it made.
    """
    try:
        named = structure(statement.results.get("outputs", []), tuple[ReportedOutput, ...])
    except Malformed as error:
        log.warning("outputs_malformed", task_id=statement.task_id, faults=error.faults)
        return ()
    return tuple({output.path: output for output in named}.values())
