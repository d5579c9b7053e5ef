"""The job's state machine: one table of legal moves, and `step`, the only writer of a job's progress.

`TRANSITIONS` is keyed by (state, kind of event); a missing key is an `IllegalTransition`. The state diagram in
docs/architecture.md is printed from this table. Rules: reference/opensafely.md sections 3.1 to 3.4.

Time: `now` is the controller's. An event may carry `at`, the agent's own time of what it reports; it is data,
never order, so it is clamped between the job's previous change and `now`.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import attrs
from attrs import frozen

from controller.core.codes import MESSAGE, RESETS, STAGES, JobState, StatusCode
from controller.core.model import Job, Progress

PENDING, RUNNING, SUCCEEDED, FAILED = JobState


@frozen(kw_only=True)
class Waiting:
    """A pending job cannot start yet, for the reason that `code` names."""

    code: StatusCode
    message: str = ""


@frozen(kw_only=True)
class Started:
    """A task was given out for the job: a new attempt begins."""


@frozen(kw_only=True)
class Progressed:
    """The agent reached a stage."""

    code: StatusCode
    at: datetime | None = None


@frozen(kw_only=True)
class Succeeded:
    """The job did what it promised."""

    message: str = ""
    at: datetime | None = None


@frozen(kw_only=True)
class Failed:
    """The job ended badly; `code` says how."""

    code: StatusCode
    message: str = ""
    at: datetime | None = None


@frozen(kw_only=True)
class DependencyFailed:
    """A job that this one waits for has failed."""


@frozen(kw_only=True)
class Reset:
    """The attempt is void: back to the queue (maintenance, reboot, hand-back)."""

    code: StatusCode
    message: str = ""


@frozen(kw_only=True)
class Faulted:
    """The platform failed the attempt: back to the queue, to be tried again after `rest`."""

    rest: timedelta = timedelta()
    cause: str = ""


@frozen(kw_only=True)
class Cancelled:
    """A user no longer wants the job."""


@frozen(kw_only=True)
class Killed:
    """An operator has ended the job. Unlike a cancelled one it stays in its workspace's memory, as a failed job."""


@frozen(kw_only=True)
class Retried:
    """An operator wants another attempt now: what the platform did to the job so far counts no longer."""


Event = (
    Waiting
    | Started
    | Progressed
    | Succeeded
    | Failed
    | DependencyFailed
    | Reset
    | Faulted
    | Cancelled
    | Killed
    | Retried
)

RETRIED_MESSAGE: Final = "An administrator asked for another attempt"


@frozen(kw_only=True)
class Transition:
    """What an event did to a job."""

    before: Progress
    after: Progress
    event: Event

    @property
    def recorded(self) -> bool:
        """Whether there is something to write into the job's history."""
        before, after = self.before, self.after
        if isinstance(self.event, Retried):
            return True
        return (before.code, before.attempt, before.cancelled) != (after.code, after.attempt, after.cancelled)

    @property
    def told(self) -> str:
        """The message for the history: as the user reads it, and for another attempt also its cause."""
        if isinstance(self.event, Retried):
            return RETRIED_MESSAGE
        if isinstance(self.event, Faulted) and self.event.cause:
            return f"{self.after.message} {self.event.cause}"
        return self.after.message

    @property
    def ended(self) -> bool:
        """Whether this is the move that made the job terminal."""
        return self.after.state.is_terminal and not self.before.state.is_terminal


@frozen(kw_only=True)
class Move:
    """What one transaction does to a job: transitions in their order, none if only its metrics are new."""

    job: Job
    """As it was before."""
    transitions: Sequence[Transition]
    metrics: Mapping[str, Any]
    """As they are from now on."""

    @property
    def after(self) -> Progress:
        """Where the job is then."""
        return self.transitions[-1].after if self.transitions else self.job.progress


class IllegalTransition(Exception):
    """An event that the job's state does not allow: a bug of the caller, carrying what is needed to see why."""

    def __init__(self, progress: Progress, event: Event) -> None:
        super().__init__(f"{type(event).__name__} is not possible in state {progress.state}: {event} on {progress}")
        self.progress = progress
        self.event = event


def _move(progress: Progress, code: StatusCode, message: str, when: datetime) -> Progress:
    """The next progress with `code`. An equal code keeps its time, so that waiting is measured from its start.

    A clock that was set back does not take the job's history with it.
    """
    when = max(when, progress.code_changed_at)
    if code is progress.code and message == progress.message:
        return progress
    return attrs.evolve(
        progress,
        state=code.state,
        code=code,
        message=message,
        updated_at=when,
        code_changed_at=progress.code_changed_at if code is progress.code else when,
    )


def _clamp(progress: Progress, at: datetime | None, now: datetime) -> datetime:
    """The agent's time if it fits between the last change and now, else the nearer end."""
    latest = max(now, progress.code_changed_at)
    return latest if at is None else min(max(at, progress.code_changed_at), latest)


def _wait(progress: Progress, event: Waiting, now: datetime) -> Progress:
    return _move(progress, event.code, event.message or MESSAGE[event.code], now)


def _start(progress: Progress, event: Started, now: datetime) -> Progress:
    del event
    started = _move(progress, StatusCode.INITIATED, MESSAGE[StatusCode.INITIATED], now)
    return attrs.evolve(started, attempt=progress.attempt + 1, started_at=started.updated_at, not_before=None)


def _progress(progress: Progress, event: Progressed, now: datetime) -> Progress:
    return _move(progress, event.code, progress.message, _clamp(progress, event.at, now))


def _finish(progress: Progress, code: StatusCode, message: str, when: datetime) -> Progress:
    finished = _move(progress, code, message or MESSAGE[code], when)
    return attrs.evolve(finished, completed_at=finished.updated_at, not_before=None)


def _succeed(progress: Progress, event: Succeeded, now: datetime) -> Progress:
    return _finish(progress, StatusCode.SUCCEEDED, event.message, _clamp(progress, event.at, now))


def _fail(progress: Progress, event: Failed, now: datetime) -> Progress:
    return _finish(progress, event.code, event.message, _clamp(progress, event.at, now))


def _fail_dependency(progress: Progress, event: DependencyFailed, now: datetime) -> Progress:
    del event
    return _finish(progress, StatusCode.DEPENDENCY_FAILED, "", now)


def _reset(progress: Progress, event: Reset, now: datetime) -> Progress:
    moved = _move(progress, event.code, event.message or MESSAGE[event.code], now)
    return attrs.evolve(moved, started_at=None)


def _fault(progress: Progress, event: Faulted, now: datetime) -> Progress:
    moved = _reset(progress, Reset(code=StatusCode.WAITING_ON_NEW_TASK), now)
    return attrs.evolve(moved, faults=progress.faults + 1, not_before=moved.code_changed_at + event.rest)


def _cancel(progress: Progress, event: Cancelled, now: datetime) -> Progress:
    del event
    return attrs.evolve(_finish(progress, StatusCode.CANCELLED_BY_USER, "", now), cancelled=True)


def _cancel_late(progress: Progress, event: Cancelled, now: datetime) -> Progress:
    """A finished job keeps its state; it only leaves the workspace's memory (section 1.4, edge behaviour 10)."""
    del event
    when = max(now, progress.code_changed_at)
    return attrs.evolve(progress, cancelled=True, completed_at=when, updated_at=when)


def _kill(progress: Progress, event: Killed, now: datetime) -> Progress:
    del event
    return _finish(progress, StatusCode.KILLED_BY_ADMIN, "", now)


def _retry(progress: Progress, event: Retried, now: datetime) -> Progress:
    """A running job goes back to the queue; one that waits keeps saying why, but rests no longer."""
    del event
    if progress.state is RUNNING:
        progress = _reset(progress, Reset(code=StatusCode.WAITING_ON_NEW_TASK, message=RETRIED_MESSAGE), now)
    when = max(now, progress.updated_at, progress.code_changed_at)
    return attrs.evolve(progress, faults=0, not_before=None, updated_at=when)


TRANSITIONS: Final[dict[tuple[JobState, type], tuple[Callable[..., Progress], frozenset[JobState]]]] = {
    (PENDING, Waiting): (_wait, frozenset({PENDING})),
    (PENDING, Started): (_start, frozenset({RUNNING})),
    (PENDING, DependencyFailed): (_fail_dependency, frozenset({FAILED})),
    (PENDING, Failed): (_fail, frozenset({FAILED})),
    (PENDING, Cancelled): (_cancel, frozenset({FAILED})),
    (PENDING, Killed): (_kill, frozenset({FAILED})),
    (PENDING, Retried): (_retry, frozenset({PENDING})),
    (RUNNING, Progressed): (_progress, frozenset({RUNNING})),
    (RUNNING, Succeeded): (_succeed, frozenset({SUCCEEDED})),
    (RUNNING, Failed): (_fail, frozenset({FAILED})),
    (RUNNING, Reset): (_reset, frozenset({PENDING})),
    (RUNNING, Faulted): (_fault, frozenset({PENDING})),
    (RUNNING, Cancelled): (_cancel, frozenset({FAILED})),
    (RUNNING, Killed): (_kill, frozenset({FAILED})),
    (RUNNING, Retried): (_retry, frozenset({PENDING})),
    (SUCCEEDED, Cancelled): (_cancel_late, frozenset({SUCCEEDED})),
    (FAILED, Cancelled): (_cancel_late, frozenset({FAILED})),
}
"""(state, kind of event) -> (how progress changes, the states that it may lead to)."""

CODES_ALLOWED: Final[dict[type, frozenset[StatusCode]]] = {
    Waiting: frozenset(c for c in StatusCode if c.state is PENDING) - {StatusCode.CREATED},
    Progressed: STAGES,
    Failed: frozenset(c for c in StatusCode if c.state is FAILED)
    - {StatusCode.CANCELLED_BY_USER, StatusCode.KILLED_BY_ADMIN, StatusCode.DEPENDENCY_FAILED},
    Reset: RESETS,
}
"""The codes that an event with a free `code` may carry, none that another event stands for; others are bugs."""


def created(now: datetime) -> Progress:
    """The progress of a job that was just planned."""
    return Progress(
        state=PENDING,
        code=StatusCode.CREATED,
        message=MESSAGE[StatusCode.CREATED],
        updated_at=now,
        code_changed_at=now,
    )


def step(progress: Progress, event: Event, now: datetime) -> Transition:
    """Apply one event.

    :raises IllegalTransition: the state does not allow the event, or the event's code contradicts its kind.
    """
    move = TRANSITIONS.get((progress.state, type(event)))
    allowed = CODES_ALLOWED.get(type(event))
    if move is None or (allowed is not None and getattr(event, "code") not in allowed):  # noqa: B009  a union
        raise IllegalTransition(progress, event)
    change, targets = move
    after = change(progress, event, now)
    if after.state not in targets:
        raise IllegalTransition(progress, event)
    return Transition(before=progress, after=after, event=event)
