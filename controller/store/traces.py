"""What spans are made of, as rows."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import attrs
from attrs import frozen

from controller.core.codes import JobState, StatusCode
from controller.core.model import Job
from controller.core.spans import Attempt, Change, JobFacts, RapFacts
from controller.store.jobs import JobRow, job_of
from controller.store.queries import Tx, command, query, scalar

T = TypeVar("T")


@frozen
class RapRow:
    id: str
    backend: str
    workspace: str
    repo_url: str
    branch: str
    commit: str
    requested_actions: list[str]
    created_by: str
    project: str
    orgs: list[str]
    traceparent: str
    parent_traceparent: str | None
    created_at: datetime


@frozen
class ChangeRow:
    seq: int
    job_id: str
    at: datetime
    attempt: int
    state: str
    code: str
    message: str


@frozen
class AttemptRow:
    job_id: str
    attempt: int
    agent: str | None
    results: Mapping[str, Any] | None


@frozen
class AwaitedRow:
    job_id: str
    traceparent: str


@frozen
class DueRow:
    """What is to be exported: a job, or without `job_id` a RAP."""

    seq: int
    rap_id: str
    job_id: str | None
    attempts: int


raps = query("traces", "raps", RapRow, lambda record: RapFacts(**dict(record.items())))
jobs_of = query("traces", "jobs_of", JobRow, job_of)
jobs = query("traces", "jobs", JobRow, job_of)
_changes = query("traces", "changes", ChangeRow)
_attempts = query("traces", "attempts", AttemptRow)
_awaited = query("traces", "awaited", AwaitedRow)
want = command("traces", "want")
claim = query("traces", "claim", DueRow)
done = command("traces", "done")
give_back = command("traces", "give_back")
drop_oldest = query("traces", "drop_oldest", int, scalar("dropped"))


async def facts_of(tx: Tx, wanted: Sequence[Job]) -> list[JobFacts]:
    """These jobs with everything that their spans tell: three queries, however many jobs."""
    ids = [job.id for job in wanted]
    changes = _by_job(await _changes.all(tx, job_ids=ids), _change)
    attempts = _by_job(await _attempts.all(tx, job_ids=ids), _attempt)
    awaited = _by_job(await _awaited.all(tx, job_ids=ids), lambda row: row.traceparent)
    return [
        JobFacts(
            job=job,
            changes=changes[job.id],
            attempts={attempt.attempt: attempt for attempt in attempts[job.id]},
            awaited=awaited[job.id],
        )
        for job in wanted
    ]


def _change(row: ChangeRow) -> Change:
    values = attrs.asdict(row, filter=attrs.filters.exclude("job_id"))
    return Change(**values | {"state": JobState(row.state), "code": StatusCode(row.code)})


def _attempt(row: AttemptRow) -> Attempt:
    return Attempt(attempt=row.attempt, agent=row.agent, results=row.results)


def _by_job(rows: Iterable[Any], make: Callable[[Any], T]) -> defaultdict[str, list[T]]:
    grouped: defaultdict[str, list[T]] = defaultdict(list)
    for row in rows:
        grouped[row.job_id].append(make(row))
    return grouped
