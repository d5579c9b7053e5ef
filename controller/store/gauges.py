"""How things stand at this moment, counted for metrics: small answers, whatever the history is."""

from datetime import datetime

from attrs import frozen

from controller.store.queries import query


@frozen
class QueueRow:
    backend: str
    code: str
    jobs: int
    since: datetime


@frozen
class TasksRow:
    backend: str
    unclaimed: int
    unclaimed_since: datetime | None
    expired: int


@frozen
class AgentsRow:
    backend: str
    executor: str
    alive: int
    silent: int
    telling: int
    slots: int
    slots_used: float | None
    jobs_running: float | None
    reports_queued: float | None
    disk_free_ratio: float | None
    loop_lag_seconds: float | None


queue = query("gauges", "queue", QueueRow)
tasks = query("gauges", "tasks", TasksRow)
agents = query("gauges", "agents", AgentsRow)
