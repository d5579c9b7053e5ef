"""Jobs as rows: their specification, their progress, and the history of both."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
from attrs import frozen

from controller.core import happenings
from controller.core.codes import JobState, StatusCode
from controller.core.machine import Move
from controller.core.model import Job, JobId, JobKind, JobSpec, Progress, ReusableAction
from controller.core.plan import LatestJob, PlannedJob
from controller.core.resources import Resources
from controller.core.schedule import ActiveJob
from controller.store import events as news
from controller.store.queries import Tx, command, query, scalar


@frozen
class JobRow:
    """Every column of `job`, in the database's types."""

    id: str
    seq: int
    rap_id: str
    position: int
    backend: str
    workspace: str
    action: str
    kind: str
    run_command: str
    requires_db: bool
    needs: list[str]
    output_spec: Mapping[str, Mapping[str, str]]
    repo_url: str
    commit: str
    branch: str
    reusable_action: Mapping[str, str] | None
    image_sha: str | None
    database_name: str | None
    analysis_scope: Mapping[str, Sequence[str]]
    weight: float
    traceparent: str
    created_at: datetime
    state: str
    code: str
    message: str
    attempt: int
    cancelled: bool
    started_at: datetime | None
    completed_at: datetime | None
    updated_at: datetime
    code_changed_at: datetime
    metrics: Mapping[str, Any]
    unmet: int
    need_failed: bool
    faults: int
    not_before: datetime | None
    resources: Mapping[str, Any]


@frozen
class LatestRow:
    workspace: str
    action: str
    id: str
    state: str


@frozen
class SchedulableRow:
    id: str
    workspace: str
    state: str
    code: str
    message: str
    requires_db: bool
    weight: float
    unmet: int
    need_failed: bool
    not_before: datetime | None


@frozen
class EventRow:
    job_id: str
    at: datetime
    attempt: int
    state: str
    code: str
    message: str


@frozen
class OutputRow:
    job_id: str
    path: str
    level: str
    size: int
    sha256: str
    excluded: bool
    message: str
    released_by: str | None
    released_at: datetime | None


@frozen
class ListedRow:
    """A job in a list: no outputs, no history."""

    id: str
    seq: int
    rap_id: str
    position: int
    backend: str
    workspace: str
    action: str
    state: str
    code: str
    message: str
    requires_db: bool
    weight: float
    attempt: int
    cancelled: bool
    faults: int
    not_before: datetime | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    code_changed_at: datetime
    agent: str | None


@frozen
class ChunkRow:
    start: int
    text: str


_SPEC_COLUMNS = tuple(a.name for a in attrs.fields(JobSpec))
_PROGRESS_COLUMNS = tuple(a.name for a in attrs.fields(Progress))


def job_of(record: Mapping[str, Any]) -> Job:
    """A row as the domain sees it."""
    spec = {name: record[name] for name in _SPEC_COLUMNS}
    spec["kind"] = JobKind(spec["kind"])
    spec["needs"] = tuple(spec["needs"])
    reusable = spec["reusable_action"]
    spec["reusable_action"] = reusable and ReusableAction(**reusable)
    spec["resources"] = Resources(**spec["resources"])
    progress = {name: record[name] for name in _PROGRESS_COLUMNS}
    progress["state"] = JobState(progress["state"])
    progress["code"] = StatusCode(progress["code"])
    return Job(spec=JobSpec(**spec), progress=Progress(**progress), metrics=record["metrics"])


def _active_job(record: Mapping[str, Any]) -> ActiveJob:
    values = dict(record.items())
    return ActiveJob(**values | {"state": JobState(values["state"]), "code": StatusCode(values["code"])})


_insert = command("jobs", "insert")
_insert_needs = command("jobs", "insert_needs")
_latest_of_actions = query("jobs", "latest_of_actions", LatestRow)
lock = query("jobs", "lock", JobRow, job_of)
lock_of_rap = query("jobs", "lock_of_rap", JobRow, job_of)
of_raps = query("jobs", "of_raps", JobRow, job_of)
find = query("jobs", "find", JobRow, job_of)
schedulable = query("jobs", "schedulable", SchedulableRow, _active_job)
_write = query("jobs", "write", str, scalar("id"))
_record_events = command("jobs", "record_events")
_meet_needs = command("jobs", "meet_needs")
_doom_dependants = command("jobs", "doom_dependants")
_note_ended = command("traces", "note_ended")
history = query("jobs", "history", EventRow)
outputs = query("jobs", "outputs", OutputRow)
replace_outputs = command("jobs", "replace_outputs")
release_outputs = command("jobs", "release_outputs")
log_length = query("jobs", "log_length", int, scalar("next_offset"))
append_log = command("jobs", "append_log")
list_active_page = query("jobs", "list_active_page", ListedRow)
list_page = query("jobs", "list_page", ListedRow)
read_log = query("jobs", "read_log", ChunkRow)


async def insert(tx: Tx, planned: Sequence[PlannedJob], progress: Progress) -> None:
    """Store planned jobs, all with the same first progress, and the first row of their history."""
    rows = [
        attrs.asdict(job.spec, recurse=True)
        | {
            "state": progress.state,
            "code": progress.code,
            "message": progress.message,
            "unmet": len(job.wait_for),
        }
        for job in planned
    ]
    await _insert.run(tx, jobs=rows)
    edges = [(job.spec.id, need) for job in planned for need in job.wait_for]
    if edges:
        await _insert_needs.run(tx, job_ids=[job for job, _ in edges], need_ids=[need for _, need in edges])
    await _record_events.run(tx, events=[_event(job.spec.id, progress, progress.message) for job in planned])


async def latest(tx: Tx, backend: str, workspace: str, actions: Iterable[str]) -> dict[str, LatestJob]:
    """The newest job of each of one workspace's actions, as far as there is one."""
    wanted = [(workspace, action) for action in actions]
    return {action: job for (_, action), job in (await latest_in(tx, backend, wanted)).items()}


async def latest_in(tx: Tx, backend: str, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], LatestJob]:
    """The newest job of each (workspace, action)."""
    rows = await _latest_of_actions.all(
        tx, backend=backend, workspaces=[w for w, _ in wanted], actions=[a for _, a in wanted]
    )
    return {(row.workspace, row.action): LatestJob(id=JobId(row.id), state=JobState(row.state)) for row in rows}


async def write(tx: Tx, moves: Sequence[Move]) -> None:
    """Store what happened to each job: its transitions in order, and its metrics now.

    The row must still be what the first transition started from; as every writer holds the backend's lock, anything
    else is a bug.
    """
    changes = []
    events = []
    for move in moves:
        before = move.job.progress
        changes.append(
            attrs.asdict(move.after)
            | {
                "id": move.job.id,
                "was_code": before.code,
                "was_attempt": before.attempt,
                "was_cancelled": before.cancelled,
                "metrics": move.metrics,
            }
        )
        events += [_event(move.job.id, each.after, each.told) for each in move.transitions if each.recorded]
    written = await _write.all(tx, changes=changes)
    if len(written) != len(changes):
        missed = {change["id"] for change in changes} - set(written)
        raise RuntimeError(f"jobs {sorted(missed)} changed under the backend's lock")
    if events:
        await _record_events.run(tx, events=events)
    ended = [(move.job.id, each.after.state) for move in moves for each in move.transitions if each.ended]
    succeeded = [job for job, state in ended if state is JobState.SUCCEEDED]
    failed = [job for job, state in ended if state is JobState.FAILED]
    if succeeded:
        await _meet_needs.run(tx, ids=succeeded)
    if failed:
        await _doom_dependants.run(tx, ids=failed)
    if moves:
        # Last, since others of the backend who tell something wait from here on. One lock, so one backend.
        await news.record(tx, moves[0].job.spec.backend, happenings.of_moves(moves))
    if ended:
        await _note_ended.run(tx, ids=[job for job, _ in ended], now=max(move.after.updated_at for move in moves))


def _event(job: JobId, progress: Progress, message: str) -> dict[str, Any]:
    return {
        "job_id": job,
        "at": progress.updated_at,
        "attempt": progress.attempt,
        "state": progress.state,
        "code": progress.code,
        "message": message,
    }
