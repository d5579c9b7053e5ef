"""The nouns of the domain: frozen values, no behaviour that needs a clock, a socket or a database."""

import enum
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NewType

from attrs import field, frozen

from controller.core.codes import JobState, StatusCode
from controller.core.resources import Resources

RapId = NewType("RapId", str)
JobId = NewType("JobId", str)
TaskId = NewType("TaskId", str)

RUN_ALL = "run_all"
"""The requested action that stands for every action of the project (reference section 4.3)."""


class JobKind(enum.StrEnum):
    """What a node of the graph is. Only `run` jobs are executed by agents; the others are later dialects'."""

    RUN = "run"
    GATE = "gate"
    GROUP = "group"
    RAP = "rap"


class TaskType(enum.StrEnum):
    """What an agent is asked to do (reference section 2.3)."""

    RUNJOB = "runjob"
    CANCELJOB = "canceljob"
    DBSTATUS = "dbstatus"
    DBDATACHECK = "dbdatacheck"
    RELEASE = "release"
    """Ours alone (`common.protocol.RELEASE`): never shown to agents of the Task API, which would stop working."""


class Flag(enum.StrEnum):
    """An operator's switch for a backend (reference section 3.6)."""

    PAUSED = "paused"
    MODE = "mode"
    MANUAL_DB_MAINTENANCE = "manual-db-maintenance"
    CHECKS_DISABLED = "db-maintenance-checks-disabled"
    """With manual maintenance on, the database is not even asked for its status (reference section 3.7)."""


DB_MAINTENANCE = "db-maintenance"
"""The value of `Flag.MODE` while database jobs may not run."""

FLAG_VALUES: Final[Mapping[Flag, tuple[str | None, ...]]] = {
    Flag.PAUSED: ("true", None),
    Flag.MODE: (DB_MAINTENANCE, "", None),
    Flag.MANUAL_DB_MAINTENANCE: ("on", None),
    Flag.CHECKS_DISABLED: ("true", None),
}
"""What a flag may be; null and an empty text are two values (reference section 3.6)."""


class Level(enum.StrEnum):
    """Privacy level of an output (reference section 4.3)."""

    HIGHLY_SENSITIVE = "highly_sensitive"
    MODERATELY_SENSITIVE = "moderately_sensitive"
    MINIMALLY_SENSITIVE = "minimally_sensitive"


@frozen(kw_only=True)
class RapRequest:
    """What a caller asked for, after its dialect has checked the shape and before anything was looked up."""

    rap_id: RapId
    dialect: str
    backend: str
    workspace: str
    repo_url: str
    branch: str
    commit: str
    database_name: str
    requested_actions: tuple[str, ...]
    codelists_ok: bool
    force_run_dependencies: bool
    created_by: str
    project: str
    orgs: tuple[str, ...]
    analysis_scope: Mapping[str, Sequence[str]] = field(factory=dict)
    traceparent: str | None = None
    """W3C `traceparent` of the incoming request, if it sent a valid one."""


@frozen(kw_only=True)
class ReusableAction:
    """The repository behind an action whose image is not one of ours (reference section 4.7)."""

    repo_url: str
    commit: str


@frozen(kw_only=True)
class JobSpec:
    """What a job is: decided when it is planned, never changed."""

    id: JobId
    rap_id: RapId
    position: int
    """Order within the RAP: dependencies come before dependants."""
    backend: str
    workspace: str
    action: str
    kind: JobKind = JobKind.RUN
    run_command: str
    requires_db: bool
    needs: tuple[str, ...]
    """Names of the needed actions; their newest outputs are inputs when the job starts."""
    output_spec: Mapping[str, Mapping[str, str]]
    """Level -> output name -> glob."""
    repo_url: str
    commit: str
    branch: str
    reusable_action: ReusableAction | None = None
    image_sha: str | None = None
    """Digest of the image at creation, if digests are looked up (reference section 2.4)."""
    database_name: str | None = None
    analysis_scope: Mapping[str, Sequence[str]] = field(factory=dict)
    weight: float = 1.0
    resources: Resources = field(factory=Resources)
    """What is said of this job; the rest is the backend's limits."""
    traceparent: str
    """W3C `traceparent` of the job's own span."""
    created_at: datetime


@frozen(kw_only=True)
class Progress:
    """How far a job is: the part that `core.machine.step`, and nothing else, moves."""

    state: JobState
    code: StatusCode
    message: str
    attempt: int = 0
    """Number of RUNJOB tasks so far; also the fencing token of the newest."""
    cancelled: bool = False
    """Whether a cancel was asked for; a cancelled success is no longer part of its workspace (section 1.4)."""
    faults: int = 0
    """Attempts that ended by an error of the platform, so far."""
    not_before: datetime | None = None
    """A pending job that had such an error rests until then."""
    started_at: datetime | None = None
    completed_at: datetime | None = None
    updated_at: datetime
    code_changed_at: datetime


@frozen(kw_only=True)
class Job:
    """One action inside one RAP."""

    spec: JobSpec
    progress: Progress
    metrics: Mapping[str, Any] = field(factory=dict)

    @property
    def id(self) -> JobId:
        return self.spec.id


@frozen(kw_only=True)
class Task:
    """One instruction to one backend; a job owns one per attempt, at most one of them active."""

    id: TaskId
    backend: str
    type: TaskType
    job_id: JobId | None
    attempt: int
    definition: Mapping[str, Any]
    attributes: Mapping[str, str]
    traceparent: str | None
    created_at: datetime
    time_limit: float | None = None
    """Seconds that the attempt may run; told to our agents beside the definition, whose keys are upstream's."""


class Verb(enum.StrEnum):
    """What a principal may do: docs/security.md has the table."""

    READ = "read"
    RUN = "run"
    MANAGE = "manage"
    REVIEW = "review"
    """Let outputs out that one has looked at."""
    AGENT = "agent"


@frozen(kw_only=True)
class Principal:
    """Who is asking, and what it may do on which backend."""

    name: str
    grants: Mapping[str, frozenset[Verb]]
    """Backend -> what the token allows there, in the configured order of backends."""

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that the token opens."""
        return tuple(self.grants)

    def may(self, verb: Verb, backend: str) -> bool:
        """Whether the principal holds `verb` on `backend`."""
        return verb in self.grants.get(backend, ())

    def backends_for(self, verb: Verb) -> tuple[str, ...]:
        """The backends on which the principal holds `verb`."""
        return tuple(backend for backend in self.grants if self.may(verb, backend))
