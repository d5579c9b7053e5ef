"""What the engine answers: frozen values for the dialects' `mapping.py` to put into their own words."""

import enum
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import evolve, field, frozen

from controller.core.codes import JobState, StatusCode
from controller.core.diagnosis import Finding
from controller.core.model import Job, JobId, RapId, TaskType, Verb
from controller.core.tokens import TokenKind


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
    on_loss: str = "retry"
    """What becomes of its jobs if it is lost: `retry` or `fail`."""
    load: int = 0
    """Jobs that it holds."""
    silent: bool = False
    """Whether it was last heard of longer ago than a lease."""


@frozen(kw_only=True)
class FlagView:
    """One switch of one backend (reference section 3.6)."""

    backend: str
    id: str
    value: str | None
    changed_at: datetime | None
    """When the value last changed; None if it was never set."""


@frozen(kw_only=True)
class FlagsSet:
    """What an operator's command did to a backend's switches."""

    backend: str
    changed: tuple[str, ...]
    """Names of the flags whose value is another one now; empty if everything was so already."""
    flags: tuple[FlagView, ...]
    """All of the backend's flags as they are now."""


@frozen(kw_only=True)
class RebootStatus:
    """Whether a backend's machines can be switched off without cutting a job short."""

    backend: str
    paused: bool
    running: int
    """Jobs."""
    cancelling: int
    """Stops that were asked for and that no agent has confirmed yet."""
    unconfirmed: tuple[str, ...] = ()
    """The agents that have to confirm them."""

    @property
    def safe(self) -> bool:
        """Nothing runs, and nothing can start."""
        return self.paused and not self.running and not self.cancelling


@frozen(kw_only=True)
class Forgotten:
    """What became of the work of an agent that is gone for good."""

    backend: str
    agent: str
    jobs: tuple[JobId, ...]
    """Jobs that it held: back in the queue, or failed if they may not run twice."""
    stops: int
    """Stops and checks that it can no longer confirm."""


@frozen(kw_only=True)
class RebootPrepared:
    """What preparing for a reboot did, and what is left to wait for."""

    changed: tuple[str, ...]
    """As of `FlagsSet`."""
    jobs: tuple[JobId, ...]
    """The running jobs that were sent back to the queue."""
    status: RebootStatus


class TokenState(enum.StrEnum):
    """Whether a token opens anything."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


@frozen(kw_only=True)
class TokenView:
    """A token as an operator sees it; the token itself is nowhere."""

    name: str
    kind: TokenKind
    state: TokenState
    grants: Mapping[str, frozenset[Verb]]
    """Backend -> what it allows there; only backends that the operator manages."""
    elsewhere: bool
    """Whether it opens others, too."""
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None


@frozen(kw_only=True)
class TokenChange:
    """What an operator's command did to a token."""

    changed: bool
    """False if everything was so already."""
    token: TokenView


@frozen(kw_only=True)
class Pruned:
    """How much a run of pruning has removed, or would remove."""

    backend: str
    cutoff: datetime
    dry_run: bool
    raps: int = 0
    """RAPs that are gone with everything."""
    jobs: int = 0
    """Their jobs."""
    kept: int = 0
    """Finished RAPs that something needs still: only history, logs and tasks of their jobs are gone."""
    outputs: int = 0
    """Names of outputs; the rest are rows of history, chunks of logs, and tasks."""
    events: int = 0
    logs: int = 0
    tasks: int = 0
    next_after: int | None = None
    """Where to go on; None at the end."""

    def plus(self, other: "Pruned") -> "Pruned":
        """The sums of both."""
        counts = ("raps", "jobs", "kept", "outputs", "events", "logs", "tasks")
        return evolve(self, **{name: getattr(self, name) + getattr(other, name) for name in counts})


@frozen(kw_only=True)
class Diagnosis:
    """What a controller finds wrong, or in order, about its database and some backends."""

    at: datetime
    findings: tuple[Finding, ...]


@frozen(kw_only=True)
class JobSummary:
    """One line of a list of jobs: without outputs and history."""

    id: JobId
    rap_id: RapId
    backend: str
    workspace: str
    action: str
    created_by: str
    state: JobState
    code: StatusCode
    message: str
    requires_db: bool
    weight: float
    attempt: int
    cancelled: bool
    faults: int
    not_before: datetime | None
    agent: str | None
    """The agent that holds, or last held, the job's newest attempt."""
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    code_changed_at: datetime


@frozen(kw_only=True)
class JobPage:
    """One page of jobs; `next_cursor` is None on the last. See `listing` for their order."""

    jobs: tuple[JobSummary, ...]
    next_cursor: str | None = None


@frozen(kw_only=True)
class JobKilled:
    """What killing a job did."""

    job: Job
    """As it is now."""
    changed: bool
    """False if it was over already."""


class Retry(enum.StrEnum):
    """What retrying a job came to."""

    STOPPED = "stopped"
    """It ran: that attempt is void, and the job is in the queue for another."""
    HASTENED = "hastened"
    """It rested after an error of the platform: now it may start as soon as there is room."""
    RESUBMITTED = "resubmitted"
    """It had failed: a new RAP asks for its action."""
    NOTHING = "nothing"
    """There was nothing to retry."""


@frozen(kw_only=True)
class JobRetried:
    """What retrying a job did."""

    job: Job
    """As it is now."""
    done: Retry
    message: str
    """One sentence about it."""
    rap_id: RapId | None = None
    """The RAP that asks for the action again, whether it was made now or by an earlier retry."""
    new_job: JobId | None = None
    """The job that stands in for this one: in that RAP, or somebody else's of the same action."""


@frozen(kw_only=True)
class PoolView:
    """One of a backend's two pools of capacity, in sums of weights."""

    configured: float
    """What the settings say."""
    override: float | None
    """What an operator has set; None: nothing."""
    limit: float
    """What holds."""
    in_use: float
    running: int
    """Jobs."""
    pending: int
    too_heavy: int
    """Pending jobs that weigh more than the limit: they wait until it is raised."""


@frozen(kw_only=True)
class CapacityView:
    """How much of a backend jobs may use, and do."""

    backend: str
    workers: PoolView
    db_workers: PoolView


@frozen(kw_only=True)
class CapacitySet:
    """What an operator's change of limits did."""

    changed: tuple[str, ...]
    """Names of the limits that are others now; empty if they were so already."""
    capacity: CapacityView
