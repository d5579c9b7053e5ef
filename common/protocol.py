"""The wire of our agent protocol, `/agent/v1/{backend}/...`: what both processes import.

Described for other implementers in schemas/agents/openapi.yaml. In short:

* `PUT agents/{agent}`   declares the agent: version, executor, slots, egress. Repeated at every start.
* `POST claim`           heartbeat, lease renewal and long-poll in one. `holding` lists what the agent works on; the
                         answer has tasks that it should work on and is not yet (new ones, and after a crash its old
                         ones), and `revoked`: what it holds and must stop (task ids).
* `POST reports`         a batch of statements, in order; each is answered by a verdict and may be repeated for ever.
* `POST logs`            a chunk of a job's log at an offset, if the agent's egress policy lets logs out.
* `POST release`         hands back tasks that the agent will not finish (drain); they go to the queue at once.

The attempt number is the fencing token: a report for an older attempt than the job's is `stale` and changes
nothing.
"""

import enum
from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

PROTOCOL_VERSION = 1

RELEASE: Final = "release"
"""Type of a task of this protocol alone: a person has looked at a finished job's outputs and lets them out.

Its definition is a `ReleaseDefinition`, its results are `ReleaseResults`.
"""


class Stage(enum.StrEnum):
    """The executor's step that a report names; values are the upstream's (reference sections 2.5, 5.1)."""

    UNKNOWN = "unknown"
    PREPARING = "preparing"
    PREPARED = "prepared"
    EXECUTING = "executing"
    EXECUTED = "executed"
    FINALIZING = "finalizing"
    FINALIZED = "finalized"
    ERROR = "error"


class Verdict(enum.StrEnum):
    """What became of a report. All of them mean "do not send it again"."""

    APPLIED = "applied"
    REPEATED = "repeated"
    """The task was already complete, or at this stage."""
    STALE = "stale"
    """The task is no longer this agent's to speak of: stop working on it."""
    UNKNOWN = "unknown"
    """No such task on this backend."""
    INVALID = "invalid"
    """The statement makes no sense; `detail` says why. The task's job is failed if the report was final."""


class Named(enum.StrEnum):
    """Which outputs an egress policy lets be named. Contents are never sent by this protocol's version 1."""

    NONE = "none"
    MINIMALLY_SENSITIVE = "minimally_sensitive"
    MODERATELY_SENSITIVE = "moderately_sensitive"
    """These and the minimally sensitive ones."""
    ALL = "all"
    """Of every level, also those that checks have excluded: for a machine whose data nobody has to protect."""


@frozen(kw_only=True)
class Egress:
    """What this agent lets out of its backend, beyond states."""

    metrics: bool = False
    logs: bool = False
    outputs: Named = Named.NONE
    """Whose path, level, size and hash may be told."""
    reviewed: bool = False
    """Whether an output is named only once a person has released it."""

    @property
    def words(self) -> str:
        """The policy as `RAP_EGRESS` writes it; `open` if everything may be told."""
        if self == OPEN:
            return "open"
        named = f"+outputs:{self.outputs}" if self.outputs is not Named.NONE else ""
        parts = ("status", "+metrics" if self.metrics else "", "+logs" if self.logs else "", named)
        return ",".join(part for part in parts if part) + (":reviewed" if named and self.reviewed else "")


OPEN: Final = Egress(metrics=True, logs=True, outputs=Named.ALL)
"""Everything that can be seen may be told; `rap up` has it."""


MOST_OF_AGENT_METRICS: Final[Mapping[str, float]] = {
    "slots_used": 1e6,
    "jobs_running": 1e6,
    "reports_queued": 1e9,
    "disk_free_ratio": 1,
    "loop_lag_seconds": 1e6,
}
"""What an agent may tell of itself with a claim, and the largest that each can be; the least is 0."""


class OnLoss(enum.StrEnum):
    """What may become of a job whose agent is lost for good, by the executor that ran it."""

    RETRY = "retry"
    """It may run again elsewhere: what an attempt does is not seen before its end."""
    FAIL = "fail"
    """It may have had effects already, so it ends as failed and somebody decides."""


@frozen(kw_only=True)
class Declaration:
    """Body of `PUT agents/{agent}`."""

    version: str
    executor: str
    slots: int
    """How many tasks the agent works on at once."""
    egress: Egress = field(factory=Egress)
    on_loss: OnLoss = OnLoss.RETRY
    protocol: int = PROTOCOL_VERSION


@frozen(kw_only=True)
class Welcome:
    """Answer to a declaration."""

    lease_seconds: float
    """How long a claimed task stays this agent's without a claim that holds it."""
    poll_seconds: float
    """The longest `wait` that the controller grants."""
    server_time: str
    """ISO 8601; for the agent's log when clocks disagree, never for order."""


@frozen(kw_only=True)
class Held:
    """A task that the agent is working on."""

    task_id: str
    attempt: int


@frozen(kw_only=True)
class ClaimRequest:
    """Body of `POST claim`."""

    agent: str
    slots: int
    """How many more RUNJOB tasks the agent can take now, 0 or more. Other types are always offered;
    of releases an agent has 16 at once at most."""
    wait: float = 0
    """Seconds to wait for something to do."""
    holding: tuple[Held, ...] = ()
    metrics: Mapping[str, float] = field(factory=dict)
    """How the agent is doing, if the egress policy lets metrics out: names of `MOST_OF_AGENT_METRICS`, all optional.
    Slots and jobs are counted, the disk is the share that is free where volumes lie, the lag is the longest of the
    agent's event loop since the last claim."""


@frozen(kw_only=True)
class TaskOffer:
    """A task in an answer to a claim."""

    id: str
    type: str
    attempt: int
    job_id: str | None
    definition: Mapping[str, Any]
    """Exactly the Task API's definition (reference section 2.4), so that both protocols speak of one thing."""
    attributes: Mapping[str, str]
    traceparent: str | None
    """W3C parent for the agent's spans and the job's `TRACEPARENT`."""
    created_at: float
    """Unix seconds."""
    time_limit: float | None = None
    """Seconds that a RUNJOB's process may run, where the controller has a limit; beside the agent's own."""


@frozen(kw_only=True)
class ClaimResponse:
    """Answer to a claim; both lists may be empty when the wait ran out."""

    tasks: tuple[TaskOffer, ...]
    revoked: tuple[str, ...] = ()
    undeclared: bool = False
    """Whether the controller has forgotten what this agent said of itself: declare again."""


@frozen(kw_only=True)
class Report:
    """One statement about one task."""

    task_id: str
    attempt: int
    stage: str
    complete: bool = False
    results: Mapping[str, Any] = field(factory=dict)
    """As the Task API's (reference section 2.5); plus `outputs`, a list of `{path, level, size, sha256, excluded,
    message}`, if the egress policy lets outputs be named. Of a `release` task: see `RELEASE`."""
    timestamp_ns: int | None = None
    """The agent's own time of the change."""
    metrics: Mapping[str, float] = field(factory=dict)
    """Sampled so far, if the egress policy lets metrics out."""


@frozen(kw_only=True)
class ReleaseDefinition:
    """What a `release` task asks for."""

    job_id: str
    created_at: float
    """Unix seconds, as in the job's own definition: it tells where the job's records are."""
    workspace: str
    by: str
    """Who has looked at the outputs."""
    paths: tuple[str, ...] | None = None
    """None: all that the agent's policy lets out after a review."""


class Refusal(enum.StrEnum):
    """Why an output that a `release` task names stays inside."""

    NOT_PERMITTED = "not_permitted"
    """It is no output of the job, or none that the agent's policy lets out. Which of them is not told."""
    CHANGED = "changed"
    """Its file is gone, or is not the one that the job left."""


class Unable(enum.StrEnum):
    """Why an agent could not even look."""

    ABSENT = "absent"
    """The job's records are not in its storage; another agent may have them."""
    POLICY = "policy"
    """Its egress policy has no outputs that leave after a review."""
    FAILED = "failed"
    """Its log says more."""


@frozen(kw_only=True)
class ReleasedOutput:
    """An output that has left."""

    path: str
    level: str
    size: int
    """Bytes."""
    sha256: str


@frozen(kw_only=True)
class RefusedOutput:
    """An output that the task names and that stays."""

    path: str
    reason: Refusal


@frozen(kw_only=True)
class ReleaseResults:
    """`results` of the final report of a `release` task."""

    released: tuple[ReleasedOutput, ...]
    refused: tuple[RefusedOutput, ...] = ()
    """Only of paths that the task names: no other name may be told."""
    withheld: int = 0
    """Files that nobody named and that are not, or no longer, as the job left them."""
    left_out: int = 0
    """Files that the policy lets out and for which this report had no room: ask again."""
    unable: Unable | None = None
    """None: it did look."""


@frozen(kw_only=True)
class ReportsRequest:
    """Body of `POST reports`."""

    agent: str
    reports: tuple[Report, ...]


@frozen(kw_only=True)
class ReportAnswer:
    """What became of the report at the same place in the request."""

    task_id: str
    verdict: Verdict
    detail: str = ""


@frozen(kw_only=True)
class ReportsResponse:
    """Answer to `POST reports`: as many entries as reports, in their order."""

    answers: tuple[ReportAnswer, ...]


@frozen(kw_only=True)
class LogChunk:
    """Body of `POST logs`: `text` stands at `offset` characters of the log of this attempt.

    Chunks may be repeated; one that does not touch what is stored is answered with the offset expected next.
    """

    agent: str
    task_id: str
    attempt: int
    offset: int
    text: str


@frozen(kw_only=True)
class LogAnswer:
    """Where the next chunk must start; `accepting` is False once the log's bound is reached."""

    next_offset: int
    accepting: bool = True


@frozen(kw_only=True)
class ReleaseRequest:
    """Body of `POST release`: these tasks were stopped and left no trace that matters; give them to somebody."""

    agent: str
    tasks: tuple[Held, ...]
    reason: str = ""


@frozen(kw_only=True)
class ReleaseResponse:
    """How many of the tasks were this agent's and went back to the queue."""

    released: int
