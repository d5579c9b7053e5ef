"""Tasks as rows: given out, claimed under leases, reported on."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import frozen

from controller.core.model import Task, TaskType
from controller.core.reports import TaskState
from controller.store.queries import command, query, scalar


@frozen
class TaskRow:
    id: str
    backend: str
    type: str
    job_id: str | None
    attempt: int
    definition: Mapping[str, Any]
    attributes: Mapping[str, str]
    traceparent: str | None
    created_at: datetime
    time_limit: float | None


@frozen
class ClaimedRow(TaskRow):
    fresh: bool


@frozen(kw_only=True)
class ClaimedTask:
    """A task as a claim hands it out."""

    task: Task
    fresh: bool
    """Whether nobody had it until now."""


@frozen
class LockedRow:
    id: str
    type: str
    job_id: str | None
    attempt: int
    agent: str | None
    active: bool
    complete: bool


@frozen
class VoidedRow:
    id: str
    job_id: str
    attempt: int
    agent: str | None
    definition: Mapping[str, Any]
    attributes: Mapping[str, str]
    traceparent: str | None


@frozen
class RoundRow:
    type: str
    active: str | None
    lease_expires_at: datetime | None
    finished_at: datetime | None


@frozen
class LastCheckRow:
    backend: str
    type: str
    finished_at: datetime
    status: str | None


@frozen
class AbandonedRow:
    job_id: str
    agent: str
    on_loss: str


@frozen
class ReleaseRow:
    id: str
    attempt: int
    definition: Mapping[str, Any]
    agent: str | None
    active: bool
    results: Mapping[str, Any]
    created_at: datetime
    finished_at: datetime | None


@frozen
class HolderRow:
    job_id: str
    agent: str | None
    exit_code: str | None
    cpu_count: float | None
    memory_limit: str | None
    time_limit: float | None


def _task(record: Mapping[str, Any]) -> Task:
    values = dict(record.items())
    return Task(**values | {"type": TaskType(values["type"])})


def _claimed(record: Mapping[str, Any]) -> ClaimedTask:
    values = dict(record.items())
    fresh = values.pop("fresh")
    return ClaimedTask(task=_task(values), fresh=fresh)


def _task_state(record: Mapping[str, Any]) -> TaskState:
    values = dict(record.items())
    return TaskState(**values | {"type": TaskType(values["type"])})


insert = command("tasks", "insert")
list_active = query("tasks", "list_active", TaskRow, _task)
claim = query("tasks", "claim", ClaimedRow, _claimed)
renew = command("tasks", "renew")
rounds = query("tasks", "rounds", RoundRow)
last_checks = query("tasks", "last_checks", LastCheckRow)
drop_old_checks = command("tasks", "drop_old_checks")
void_checks = query("tasks", "void_checks", str, scalar("id"))
hand_over_checks = query("tasks", "hand_over_checks", str, scalar("id"))
revoked = query("tasks", "revoked", str, scalar("id"))
lock = query("tasks", "lock", LockedRow, _task_state)
write = command("tasks", "write")
void_runs = query("tasks", "void_runs", VoidedRow)
abandoned = query("tasks", "abandoned", AbandonedRow)
held_by = query("tasks", "held_by", AbandonedRow)
void_others_of = query("tasks", "void_others_of", str, scalar("id"))
hand_over_releases = query("tasks", "hand_over_releases", str, scalar("id"))
releases = query("tasks", "releases", ReleaseRow)
release = query("tasks", "release", str, scalar("job_id"))
holders = query("tasks", "holders", HolderRow)
