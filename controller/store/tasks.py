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
class HolderRow:
    job_id: str
    agent: str | None
    exit_code: str | None


def _task(record: Mapping[str, Any]) -> Task:
    values = dict(record.items())
    return Task(**values | {"type": TaskType(values["type"])})


def _task_state(record: Mapping[str, Any]) -> TaskState:
    values = dict(record.items())
    return TaskState(**values | {"type": TaskType(values["type"])})


insert = command("tasks", "insert")
list_active = query("tasks", "list_active", TaskRow, _task)
claim = query("tasks", "claim", TaskRow, _task)
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
release = query("tasks", "release", str, scalar("job_id"))
holders = query("tasks", "holders", HolderRow)
