"""What a trace is made of: spans, and what is known of a RAP and its jobs before they are spans (`core.traces`)."""

import enum
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import field, frozen

from controller.core.codes import JobState, StatusCode
from controller.core.model import Job

Primitive = str | int | float | bool
"""What an attribute may be."""


class SpanKind(enum.StrEnum):
    """What a span tells of."""

    RAP = "rap"
    JOB = "job"
    STATE = "state"
    """One status code, from when the job came to it until it left it."""
    FINAL = "final"
    """The last status code: that of a job that has ended."""
    STEP = "step"
    """What the agent did."""


@frozen(kw_only=True)
class Link:
    """Another span that this one has to do with: the JOB span of a job that it waited for."""

    trace_id: str
    span_id: str


@frozen(kw_only=True)
class Span:
    """One span. Ids are lower-case hexadecimal as in W3C trace context, times nanoseconds since 1970."""

    kind: SpanKind
    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int | None
    """None while it is not over; such a span is shown and never exported."""
    attributes: Mapping[str, Primitive]
    is_error: bool = False
    """The platform's fault; what users do wrong is no error (reference section 6)."""
    links: tuple[Link, ...] = ()


@frozen(kw_only=True)
class RapFacts:
    """What is known of a RAP itself."""

    id: str
    backend: str
    workspace: str
    repo_url: str
    branch: str
    commit: str
    requested_actions: Sequence[str]
    created_by: str
    project: str
    orgs: Sequence[str]
    traceparent: str
    """Of the RAP's own span."""
    parent_traceparent: str | None
    created_at: datetime


@frozen(kw_only=True)
class Change:
    """One row of a job's history."""

    seq: int
    at: datetime
    attempt: int
    state: JobState
    code: StatusCode
    message: str


@frozen(kw_only=True)
class Attempt:
    """One task of a job."""

    attempt: int
    agent: str | None
    """None: never claimed, or by an agent of the Task API, which has no name."""
    results: Mapping[str, Any] | None
    """Of the agent's final report, by `core.traces.RESULT_KEYS`; None if there was none."""


@frozen(kw_only=True)
class JobFacts:
    """A job with its history in the order in which it happened."""

    job: Job
    changes: Sequence[Change]
    attempts: Mapping[int, Attempt] = field(factory=dict)
    awaited: Sequence[str] = ()
    """`traceparent`s of the jobs that it had to wait for."""
