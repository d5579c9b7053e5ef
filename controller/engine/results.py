"""What the engine answers to creates and reads: frozen values for the dialects to put into their own words.

What only one other use case answers is in its module.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import field, frozen

from controller.core.codes import JobState, StatusCode
from controller.core.model import Job, JobId, RapId, TaskType
from controller.core.resources import JobLimits


@frozen(kw_only=True)
class Created:
    """A RAP was accepted and its jobs stored."""

    rap_id: RapId
    count: int


@frozen(kw_only=True)
class NoChange:
    """The same RAP was accepted before; `count` is the number of its jobs."""

    rap_id: RapId
    count: int


@frozen(kw_only=True)
class NothingToDo:
    """No job is needed; nothing was stored. `details` is the sentence for the user (reference section 1.3)."""

    rap_id: RapId
    details: str


@frozen(kw_only=True)
class StatusReport:
    """Jobs of the RAPs asked for, by RAP id, then in the order of their graph; and the ids nobody may know."""

    jobs: tuple[Job, ...]
    unrecognised: tuple[RapId, ...]


@frozen(kw_only=True)
class CheckView:
    """How the last check of a backend's database ended (reference section 3.7)."""

    kind: TaskType
    finished_at: datetime
    answer: str | None
    """One of the allowed words; None if the check could not be carried out."""


@frozen(kw_only=True)
class BackendView:
    """A backend as its users see it (reference section 1.2)."""

    slug: str
    last_seen: datetime | None
    paused: bool
    paused_since: datetime | None
    db_maintenance: bool
    db_maintenance_since: datetime | None
    db_maintenance_type: str | None
    """`manual` or `scheduled` while maintenance is on."""
    checks: tuple[CheckView, ...] = ()
    """Of the kinds that this backend has, and that were ever carried out."""


@frozen(kw_only=True)
class RapSummary:
    """One line of a list of RAPs."""

    id: RapId
    backend: str
    workspace: str
    created_by: str
    project: str
    repo_url: str
    branch: str
    commit: str
    created_at: datetime
    requested_actions: tuple[str, ...]
    traceparent: str
    counts: Mapping[JobState, int]
    """How many of the RAP's jobs are in each state; states with none are left out."""


@frozen(kw_only=True)
class OutputView:
    """One output file, as far as the backend's egress policy lets it be named."""

    path: str
    level: str
    size: int
    """Bytes."""
    sha256: str
    excluded: bool
    message: str
    """Why an excluded file was not released to the medium-privacy area; else empty."""
    released_by: str | None = None
    """Who let it out after a review; None if the policy names it without one."""
    released_at: datetime | None = None


@frozen(kw_only=True)
class HistoryEntry:
    """One transition of a job."""

    at: datetime
    attempt: int
    state: JobState
    code: StatusCode
    message: str


@frozen(kw_only=True)
class JobDetail:
    """A job with everything that is known about it."""

    job: Job
    outputs: tuple[OutputView, ...]
    history: tuple[HistoryEntry, ...]
    agent: str | None = None
    """The agent that holds, or last held, the job's task."""
    exit_code: str | None = None
    limits: JobLimits | None = None
    """What the newest attempt may use, or the first one will; None if its backend is no longer configured."""


@frozen(kw_only=True)
class RapDetail:
    """A RAP and its jobs, in the order of their graph."""

    rap: RapSummary
    jobs: tuple[JobDetail, ...]


@frozen(kw_only=True)
class LogPage:
    """A part of a job's log, as far as the backend's egress policy lets it out."""

    job_id: JobId
    attempt: int
    text: str
    next_offset: int
    """Characters; where the next page starts."""
    complete: bool
    """True once the job is finished and `text` reaches the end."""
    truncated: bool = False
    """Whether the controller's bound cut the log."""


@frozen(kw_only=True)
class Page:
    """One page of RAPs, newest first; `next_cursor` is None on the last."""

    raps: tuple[RapSummary, ...]
    next_cursor: str | None = None


@frozen(kw_only=True)
class AgentView:
    """An agent as operators see it."""

    id: str
    backend: str
    version: str
    executor: str
    slots: int
    last_seen: datetime | None
    egress: Mapping[str, Any] = field(factory=dict)
    policy: str = "unknown"
    """The same as its operator writes it, such as `status,+metrics`."""
    on_loss: str = "retry"
    """What becomes of its jobs if it is lost: `retry` or `fail`."""
    load: int = 0
    """Jobs that it holds."""
    silent: bool = False
    """Whether it was last heard of longer ago than a lease."""
