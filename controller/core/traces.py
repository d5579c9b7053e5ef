"""Spans out of the stored history: one trace per RAP, told the same way however often and by whomever it is told.

Nothing is measured while a job runs: its rows become spans when somebody asks, or when it has ended. So a restart loses
none, and a repeated export is the same spans again, for every id is derived from the history.

    RAP                              the request, child of the portal's span if it sent one
    `-- JOB                          span id: the job's `trace_context` in the RAP API
        |-- CREATED, EXECUTING, ...  one per status code, named by the code that ends with it (enum name)
        |-- SUCCEEDED, ...           the final code, one second long
        `-- prepare, execute, ...    what the agent did, per attempt

Names and attributes: reference/opensafely.md section 6; what is ours beyond it: docs/observability/traces.md.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from attrs import frozen

from common.ids import task_id
from controller.core.codes import JobState, StatusCode
from controller.core.model import TaskType
from controller.core.spans import Change, JobFacts, Link, Primitive, RapFacts, Span, SpanKind

LONGEST_TEXT: Final = 4096
"""Characters of an attribute; what is longer is cut, so that no text of a user's makes a batch too large to send."""
MOST_SCOPES: Final = 32
"""Attributes that a RAP's analysis scope may become."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_INT64: Final = range(-(2**63), 2**63)
_FINAL_NS: Final = 1_000_000_000
"""How long the span of a final code is (reference section 6)."""

RESULT_KEYS: Final[Mapping[str, str]] = {
    "exit_code": "exit_code",
    "image_id": "docker_image_id",
    "executor_message": "status_message",
    "action_version": "action_version",
    "action_revision": "action_revision",
    "action_created": "action_created",
    "base_revision": "base_revision",
    "base_created": "base_created",
}
"""Attribute of a finished job -> key of the agent's final results."""

STEPS: Final[Mapping[StatusCode, str]] = {
    StatusCode.PREPARING: "prepare",
    StatusCode.PREPARED: "prepare",
    StatusCode.EXECUTING: "execute",
    StatusCode.EXECUTED: "execute",
    StatusCode.FINALIZING: "finalize",
    StatusCode.FINALIZED: "finalize",
}
"""The agent's step that a stage belongs to; a step lasts until the job is at a stage of no or another step."""


@frozen(kw_only=True)
class _Stretch:
    """The time that a job spent at one code."""

    change: Change
    start_ns: int
    end_ns: int | None
    next_state: JobState | None
    """The state that the job went to; None if it is there still."""
    started_ns: int | None
    """Of the attempt that was running then."""


def rap_span(rap: RapFacts, jobs: Sequence[JobFacts]) -> Span:
    """The root. It ends with the last of its jobs.

    :param jobs: all of the RAP's.
    """
    trace_id, span_id = _ids(rap.traceparent)
    parent = _ids(rap.parent_traceparent) if rap.parent_traceparent else None
    ends = [_end(facts) for facts in jobs]
    codes = [facts.job.progress.code for facts in jobs]
    states = [facts.job.progress.state for facts in jobs]
    over = bool(ends) and None not in ends
    start = min([_ns(rap.created_at), *(_ns(facts.job.spec.created_at) for facts in jobs)]) - 2_000
    return Span(
        kind=SpanKind.RAP,
        name="RAP",
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent[1] if parent and parent[0] == trace_id else None,
        start_ns=start,
        end_ns=max(end for end in ends if end is not None) if over else None,
        attributes=_primitives(
            {
                "rap.id": rap.id,
                "rap.backend": rap.backend,
                "rap.workspace": rap.workspace,
                "rap.project": rap.project,
                "rap.orgs": ",".join(rap.orgs),
                "rap.user": rap.created_by,
                "rap.repo_url": rap.repo_url,
                "rap.branch": rap.branch,
                "rap.commit": rap.commit,
                "rap.requested_actions": ",".join(rap.requested_actions),
                "rap.jobs": len(jobs),
                "rap.jobs_succeeded": states.count(JobState.SUCCEEDED),
                "rap.jobs_failed": states.count(JobState.FAILED),
                "rap.succeeded": over and set(states) == {JobState.SUCCEEDED},
            }
        ),
        is_error=StatusCode.INTERNAL_ERROR in codes,
    )


def job_spans(rap: RapFacts, facts: JobFacts) -> tuple[Span, ...]:
    """The JOB span, then its codes and steps in the order of time."""
    common = _job_attributes(rap, facts)
    stretches = _stretches(facts)
    codes = [_code_span(facts, common, stretch) for stretch in stretches]
    steps = _step_spans(rap, facts, stretches)
    return (_job_span(rap, facts, common, stretches), *codes, *steps)


def _job_span(rap: RapFacts, facts: JobFacts, common: Mapping[str, Primitive], stretches: Sequence[_Stretch]) -> Span:
    spec, progress = facts.job.spec, facts.job.progress
    trace_id, span_id = _ids(spec.traceparent)
    root = _ids(rap.traceparent)
    end = _end(facts)
    last = stretches[-1] if stretches else None
    now = {
        "job.state": progress.state.name,
        "job.message": last.change.message if last else progress.message,
        "job.started_at": last.started_ns if last else None,
        "job.status_code_updated_at": last.start_ns if last else _ns(progress.code_changed_at),
    }
    return Span(
        kind=SpanKind.JOB,
        name="JOB",
        trace_id=trace_id,
        span_id=span_id,
        parent_id=root[1] if root[0] == trace_id else None,
        start_ns=_ns(spec.created_at - _MICROSECOND),
        end_ns=end,
        attributes={**common, **_primitives(now | _results(facts, progress.attempt))},
        is_error=progress.code is StatusCode.INTERNAL_ERROR,
        links=tuple(Link(trace_id=trace, span_id=span) for trace, span in map(_ids, facts.awaited)),
    )


def _code_span(facts: JobFacts, common: Mapping[str, Primitive], stretch: _Stretch) -> Span:
    """A code of the job: the state is the one that it went to, the message the one that it had."""
    change = stretch.change
    trace_id, parent_id = _ids(facts.job.spec.traceparent)
    final = change.state.is_terminal
    own: dict[str, Any] = {
        "job.state": (stretch.next_state or change.state).name,
        "job.message": change.message,
        "job.started_at": stretch.started_ns,
        "job.status_code_updated_at": stretch.start_ns,
        "job.attempt": change.attempt,
        "job.agent": _agent(facts, change.attempt),
    }
    if final:
        own |= {"job.succeeded": change.state is JobState.SUCCEEDED} | _results(facts, change.attempt)
    return Span(
        kind=SpanKind.FINAL if final else SpanKind.STATE,
        name=change.code.name,
        trace_id=trace_id,
        span_id=_derived(facts.job.id, str(change.seq), "code"),
        parent_id=parent_id,
        start_ns=stretch.start_ns,
        end_ns=stretch.start_ns + _FINAL_NS if final else stretch.end_ns,
        attributes={**common, **_primitives(own)},
        is_error=final and change.code is StatusCode.INTERNAL_ERROR,
    )


def _step_spans(rap: RapFacts, facts: JobFacts, stretches: Sequence[_Stretch]) -> list[Span]:
    """What the agent did. Attributes have no prefix, as upstream's agent names them."""
    trace_id, parent_id = _ids(facts.job.spec.traceparent)
    made = []
    for name, stage in _steps(stretches):
        attempt, seq = stage[0].change.attempt, stage[0].change.seq
        made.append(
            Span(
                kind=SpanKind.STEP,
                name=name,
                trace_id=trace_id,
                span_id=_derived(facts.job.id, str(seq), name),
                parent_id=parent_id,
                start_ns=stage[0].start_ns,
                end_ns=stage[-1].end_ns,
                attributes=_primitives(
                    {
                        "backend": rap.backend,
                        "agent": _agent(facts, attempt),
                        "task": task_id(facts.job.id, attempt),
                        "task_type": TaskType.RUNJOB.name,
                        "attempt": attempt,
                        "job": facts.job.id,
                        "job_request": rap.id,
                        "workspace": rap.workspace,
                        "action": facts.job.spec.action,
                        "commit": facts.job.spec.commit,
                        "repo_url": facts.job.spec.repo_url,
                        "user": rap.created_by,
                        "project": rap.project,
                        "orgs": ",".join(rap.orgs),
                        "allow_database_access": facts.job.spec.requires_db,
                    }
                ),
            )
        )
    return made


def _steps(stretches: Iterable[_Stretch]) -> list[tuple[str, list[_Stretch]]]:
    """Stretches that follow each other within one step of one attempt."""
    found: list[tuple[str, list[_Stretch]]] = []
    before: tuple[str | None, int] = (None, 0)
    for stretch in stretches:
        name = STEPS.get(stretch.change.code)
        if name is not None:
            if before == (name, stretch.change.attempt):
                found[-1][1].append(stretch)
            else:
                found.append((name, [stretch]))
        before = (name, stretch.change.attempt)
    return found


def _stretches(facts: JobFacts) -> list[_Stretch]:
    """The job's life, code after code, without gaps; empty if its history was pruned."""
    begun = list(_begun(facts))
    made: list[_Stretch] = []
    started: int | None = None
    for place, (change, start) in enumerate(begun):
        following, end = begun[place + 1] if place + 1 < len(begun) else (None, None)
        if change.code is StatusCode.INITIATED:
            started = start
        elif change.state is JobState.PENDING:
            started = None
        made.append(
            _Stretch(
                change=change,
                start_ns=start,
                end_ns=end,
                next_state=following.state if following else None,
                started_ns=started,
            )
        )
    return made


def _begun(facts: JobFacts) -> Iterator[tuple[Change, int]]:
    """The changes that brought the job to another code or attempt, and when.

    What brings neither (an operator's retry of a waiting job), and what comes after the end (a late cancel), is none.
    A job's history begins when the job does, although two looks at the clock told the two times. Controllers' clocks
    may differ: a time before the one that precedes it counts as that.
    """
    before: Change | None = None
    at = _ns(facts.job.spec.created_at)
    for change in facts.changes:
        if before is not None:
            if before.state.is_terminal:
                return
            if (before.code, before.attempt) == (change.code, change.attempt):
                continue
            at = max(at, _ns(change.at))
        yield change, at
        before = change


def _end(facts: JobFacts) -> int | None:
    """When the job came to its final code; a cancel after that does not count. None while it has not."""
    for change, at in _begun(facts):
        if change.state.is_terminal:
            return at
    completed = facts.job.progress.completed_at
    return None if completed is None else max(_ns(completed), _ns(facts.job.spec.created_at))


def _job_attributes(rap: RapFacts, facts: JobFacts) -> dict[str, Primitive]:
    """What is the same in all spans of a job, except the agent's."""
    spec = facts.job.spec
    reusable = spec.reusable_action
    scope = {f"job.analysis_scope.{key}": _joined(value) for key, value in list(spec.analysis_scope.items())}
    return _primitives(
        {
            "rap.backend": spec.backend,
            "rap.id": spec.rap_id,
            "job.backend": spec.backend,
            "job.id": spec.id,
            "job.request": spec.rap_id,
            "job.workspace": spec.workspace,
            "job.action": spec.action,
            "job.commit": spec.commit,
            "job.run_command": spec.run_command,
            "job.user": rap.created_by,
            "job.project": rap.project,
            "job.orgs": ",".join(rap.orgs),
            "job.created_at": _ns(spec.created_at),
            "job.requires_db": spec.requires_db,
            "job.reusable_action": f"{reusable.repo_url}:{reusable.commit}" if reusable else None,
            "job.needs": ",".join(spec.needs),
            **dict(list(scope.items())[:MOST_SCOPES]),
            "job.attempt": facts.job.progress.attempt,
            "job.agent": _agent(facts, facts.job.progress.attempt),
        }
    )


def _results(facts: JobFacts, attempt: int) -> dict[str, Any]:
    """What the agent said of the end, if it was the agent who ended the job."""
    found = facts.attempts.get(attempt)
    if found is None or found.results is None:
        return {}
    return {f"job.{name}": found.results.get(key) for name, key in RESULT_KEYS.items()}


def _agent(facts: JobFacts, attempt: int) -> str | None:
    found = facts.attempts.get(attempt)
    return found.agent if found else None


def _joined(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _primitives(values: Mapping[str, Any]) -> dict[str, Primitive]:
    """Whatever a value is, an attribute takes it: what is not primitive, and None, as text (reference section 6)."""
    return {_text(name): _primitive(value) for name, value in values.items()}


def _primitive(value: object) -> Primitive:
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int) and value in _INT64:
        return int(value)
    return _text(value)


def _text(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} [...]"


def _ids(traceparent: str) -> tuple[str, str]:
    """Trace id and span id of a `traceparent` of ours, which is canonical (`common.tracing`)."""
    _, trace, span, *_ = traceparent.split("-")
    return trace, span


def _derived(*parts: str) -> str:
    """A span id that is the same whenever it is made, and nobody else's."""
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


def _ns(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND * 1000
