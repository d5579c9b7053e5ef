"""What the database knows of its own state and of work that has got stuck."""

from datetime import datetime

from attrs import frozen

from controller.store.queries import query, scalar


@frozen
class DatabaseRow:
    now: datetime
    version: int
    fsync: bool
    full_page_writes: bool
    synchronous_commit: bool


@frozen
class AgentRow:
    id: str
    last_seen_at: datetime
    slots: int
    holding: int


@frozen
class TasksRow:
    unclaimed: int
    unclaimed_since: datetime | None
    expired: int
    expired_since: datetime | None
    cancels: int
    cancels_since: datetime | None


@frozen
class JobsRow:
    active: int
    created: int
    created_since: datetime | None


database = query("diagnosis", "database", DatabaseRow)
agents = query("diagnosis", "agents", AgentRow)
tasks = query("diagnosis", "tasks", TasksRow)
jobs = query("diagnosis", "jobs", JobsRow)
without_task = query("diagnosis", "without_task", str, scalar("id"))
too_heavy = query("diagnosis", "too_heavy", str, scalar("id"))
