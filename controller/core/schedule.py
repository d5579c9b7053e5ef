"""Which jobs of one backend start, wait, or fail: a pure decision over a snapshot.

Rules: reference/opensafely.md sections 3.3 and 3.5. Order among startable jobs: fewest running jobs in the
workspace (counted while deciding, so that capacity is shared within one pass), then database jobs, then age.

Cost: O(n log w) for n jobs in the snapshot in w workspaces. The store puts only jobs into a snapshot that may
move, so a pass does not grow with history, nor with jobs that wait for others.
"""

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import assert_never

from attrs import field, frozen

from controller.core.codes import MESSAGE, JobState, StatusCode
from controller.core.model import JobId
from controller.core.modes import Modes


@frozen(kw_only=True)
class Limits:
    """How much of a backend jobs may use: the sum of weights in each of two pools (section 3.5)."""

    workers: float
    db_workers: float


def heaviest(limit: float) -> float:
    """What a single job may weigh in a pool of this size: a heavier one cannot start until the limit is raised.

    A pool of 0 is closed on purpose, to all jobs alike: none is too heavy for it.
    """
    return limit or math.inf


@frozen(kw_only=True)
class ActiveJob:
    """What scheduling needs to know of a job that is not finished."""

    id: JobId
    workspace: str
    state: JobState
    code: StatusCode
    message: str
    requires_db: bool
    weight: float
    unmet: int
    """Needs that have not succeeded yet."""
    need_failed: bool
    """Whether a need has failed, so that this job never can start."""
    not_before: datetime | None = None
    """A job that the platform failed rests until then."""


@frozen(kw_only=True)
class Snapshot:
    """One backend at one moment. `jobs` are in order of age, oldest first."""

    now: datetime
    limits: Limits
    modes: Modes
    jobs: Sequence[ActiveJob] = field(factory=tuple)


@frozen(kw_only=True)
class Start:
    """Give out a task for the job."""

    job_id: JobId


@frozen(kw_only=True)
class Wait:
    """Tell the user why the job is not starting."""

    job_id: JobId
    code: StatusCode
    message: str


@frozen(kw_only=True)
class FailDependency:
    """The job can never start."""

    job_id: JobId


@frozen(kw_only=True)
class SendBack:
    """Stop a running job and put it back into the queue."""

    job_id: JobId
    code: StatusCode


Decision = Start | Wait | FailDependency | SendBack


def decide(snapshot: Snapshot) -> list[Decision]:
    """What to do now. Deciding again after that gives nothing, except for what was sent back: it is pending now."""
    decisions: list[Decision] = []
    startable: list[ActiveJob] = []
    running: list[ActiveJob] = []
    for job in snapshot.jobs:
        match job.state:
            case JobState.RUNNING if snapshot.modes.db_maintenance and job.requires_db:
                decisions.append(SendBack(job_id=job.id, code=StatusCode.WAITING_DB_MAINTENANCE))
            case JobState.RUNNING:
                running.append(job)
            case JobState.PENDING:
                code = _obstacle(job, snapshot.modes, snapshot.now)
                if code is None:
                    startable.append(job)
                elif code is StatusCode.DEPENDENCY_FAILED:
                    decisions.append(FailDependency(job_id=job.id))
                else:
                    decisions += _wait(job, code)
            case JobState.SUCCEEDED | JobState.FAILED:
                pass
            case _:
                assert_never(job.state)
    return decisions + _share(startable, running, snapshot.limits)


def _obstacle(job: ActiveJob, modes: Modes, now: datetime) -> StatusCode | None:
    """Why a pending job may not start, apart from capacity; the order is the table's of section 3.3."""
    if modes.paused:
        # A job that was sent back for a reboot keeps saying so (edge behaviour 20).
        return StatusCode.WAITING_ON_REBOOT if job.code is StatusCode.WAITING_ON_REBOOT else StatusCode.WAITING_PAUSED
    if modes.db_maintenance and job.requires_db:
        return StatusCode.WAITING_DB_MAINTENANCE
    if job.need_failed:
        return StatusCode.DEPENDENCY_FAILED
    if job.unmet:
        return StatusCode.WAITING_ON_DEPENDENCIES
    if job.not_before is not None and now < job.not_before:
        return StatusCode.WAITING_ON_NEW_TASK
    return None


def next_look(snapshot: Snapshot) -> datetime | None:
    """When time alone may change a decision: the end of the first job's rest."""
    rests = (job.not_before for job in snapshot.jobs if job.state is JobState.PENDING)
    return min((rest for rest in rests if rest is not None and rest > snapshot.now), default=None)


def _share(startable: Iterable[ActiveJob], running: Iterable[ActiveJob], limits: Limits) -> list[Decision]:
    """Hand out what capacity is left, fairly between workspaces."""
    used = {False: 0.0, True: 0.0}
    active: defaultdict[str, int] = defaultdict(int)
    for job in running:
        used[job.requires_db] += job.weight
        active[job.workspace] += 1
    queues: defaultdict[str, tuple[deque[ActiveJob], deque[ActiveJob]]] = defaultdict(lambda: (deque(), deque()))
    age: dict[JobId, int] = {}
    for place, job in enumerate(startable):
        queues[job.workspace][0 if job.requires_db else 1].append(job)
        age[job.id] = place

    def rank(workspace: str) -> tuple[int, bool, int, str]:
        db, other = queues[workspace]
        head = db[0] if db else other[0]
        return (active[workspace], not head.requires_db, age[head.id], workspace)

    limit = {False: limits.workers, True: limits.db_workers}
    heap = [rank(workspace) for workspace in queues]
    heapq.heapify(heap)
    decisions: list[Decision] = []
    while heap:
        workspace = heapq.heappop(heap)[-1]
        db, other = queues[workspace]
        job = (db or other).popleft()
        if used[job.requires_db] + job.weight <= limit[job.requires_db]:
            used[job.requires_db] += job.weight
            active[workspace] += 1
            decisions.append(Start(job_id=job.id))
        else:
            code = StatusCode.WAITING_ON_DB_WORKERS if job.requires_db else StatusCode.WAITING_ON_WORKERS
            decisions += _wait(job, code)
        if db or other:
            heapq.heappush(heap, rank(workspace))
    return decisions


def _wait(job: ActiveJob, code: StatusCode) -> list[Decision]:
    """A decision only if it would change what the user reads."""
    message = MESSAGE[code]
    if code is StatusCode.WAITING_ON_WORKERS and job.weight > 1:
        message += " for resource intensive job"
    if job.code is code and job.message == message:
        return []
    return [Wait(job_id=job.id, code=code, message=message)]
