"""What a report about a task is worth: a verdict, and the event for the task's job, if any.

Reports come late, twice, out of order and from agents that no longer hold the task; none of these changes anything.
The task's attempt is the fencing token. Stages only move forward within an attempt.
"""

from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

from common.protocol import Verdict
from controller.core import checks, releases
from controller.core.codes import StatusCode
from controller.core.machine import Event, Failed
from controller.core.model import Job, JobId, TaskId, TaskType
from controller.core.outcome import SenselessReport, agent_time, conclusion, progress
from controller.core.retry import DEFAULT, RetryPolicy

_ORDER: Final = {
    code: place
    for place, code in enumerate(
        (
            StatusCode.INITIATED,
            StatusCode.PREPARING,
            StatusCode.PREPARED,
            StatusCode.EXECUTING,
            StatusCode.EXECUTED,
            StatusCode.FINALIZING,
            StatusCode.FINALIZED,
        )
    )
}


@frozen(kw_only=True)
class Statement:
    """A report, whatever protocol it came by."""

    task_id: str
    attempt: int | None
    """None from the Task API, whose task ids carry the attempt."""
    agent: str | None
    """None from the Task API, whose agents have no names: the backend's token speaks for all of them."""
    stage: str
    complete: bool
    results: Mapping[str, Any]
    timestamp_ns: int | None = None
    metrics: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class TaskState:
    """The task as it is now."""

    id: TaskId
    job_id: JobId | None
    type: TaskType
    attempt: int
    agent: str | None
    active: bool
    complete: bool


@frozen(kw_only=True)
class Judgement:
    """What to do about a statement. `applied` says whether the task's row changes."""

    verdict: Verdict
    detail: str = ""
    event: Event | None = None

    @property
    def applied(self) -> bool:
        """Whether anything is written."""
        return self.verdict in (Verdict.APPLIED, Verdict.INVALID)


def judge(
    statement: Statement,
    task: TaskState | None,
    job: Job | None,
    *,
    retry: RetryPolicy = DEFAULT,
    jitter: float = 0.0,
) -> Judgement:
    """The worth of one statement. `job` is the task's, if it has one; `jitter`: see `RetryPolicy.delay`."""
    if task is None or (task.type is TaskType.RELEASE and statement.agent is None):
        return Judgement(verdict=Verdict.UNKNOWN, detail="no such task on this backend")
    if statement.attempt not in (None, task.attempt):
        return Judgement(verdict=Verdict.STALE, detail=f"the task's attempt is {task.attempt}")
    if statement.agent is not None and task.agent != statement.agent:
        return Judgement(verdict=Verdict.STALE, detail="the task is held by another agent")
    if task.complete:
        return Judgement(verdict=Verdict.REPEATED)
    if not task.active:
        return Judgement(verdict=Verdict.STALE, detail="the attempt was cancelled or sent back")
    if task.type is not TaskType.RUNJOB or job is None:
        return _judge_other(statement, task)
    if statement.complete:
        return _judge_final(statement, job, retry, jitter)
    event = progress(statement.stage, statement.timestamp_ns)
    if event is None:
        return Judgement(verdict=Verdict.APPLIED, detail=f"stage {statement.stage!r} is not shown to users")
    if _ORDER.get(StatusCode(statement.stage), 0) < _ORDER.get(job.progress.code, 0):
        return Judgement(verdict=Verdict.REPEATED, detail=f"the job is past {statement.stage!r}")
    return Judgement(verdict=Verdict.APPLIED, event=event)


def _judge_final(statement: Statement, job: Job, retry: RetryPolicy, jitter: float) -> Judgement:
    """A final report that makes no sense ends its job with a message, rather than leaving it running for ever."""
    try:
        event = conclusion(job, statement.results, statement.timestamp_ns, retry=retry, jitter=jitter)
    except SenselessReport as error:
        text = f"This job returned a fatal error. The agent's final report could not be understood: {error}."
        failed = Failed(code=StatusCode.JOB_ERROR, message=text, at=agent_time(statement.timestamp_ns))
        return Judgement(verdict=Verdict.INVALID, detail=str(error), event=failed)
    return Judgement(verdict=Verdict.APPLIED, event=event)


def _judge_other(statement: Statement, task: TaskState) -> Judgement:
    """An answer to a check or a release is believed only if it is an allowed one. The task ends in any case."""
    if not statement.complete:
        return Judgement(verdict=Verdict.APPLIED)
    if task.type is TaskType.RELEASE:
        detail = releases.fault(statement.results)
    else:
        detail = checks.fault(task.type, statement.results)
    if detail is not None:
        return Judgement(verdict=Verdict.INVALID, detail=detail)
    return Judgement(verdict=Verdict.APPLIED)
