"""Backends, their flags, their agents, and the hints that wake who waits for them."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from attrs import frozen

from controller.core.modes import Modes
from controller.store.queries import Tx, command, query, scalar

TASKS_CHANNEL = "rap_tasks"
"""Notified with a backend's slug when there is something new to claim."""
SCHEDULE_CHANNEL = "rap_schedule"
"""Notified with a backend's slug when a scheduling pass may have something to decide."""


@frozen
class SeenRow:
    backend: str
    at: datetime


@frozen
class FlagRow:
    backend: str
    id: str
    value: str | None
    changed_at: datetime


@frozen
class AgentRow:
    id: str
    backend: str
    version: str
    executor: str
    slots: int
    egress: Mapping[str, Any]
    on_loss: str
    last_seen_at: datetime
    load: int


@frozen
class LimitsRow:
    slug: str
    workers: float | None
    db_workers: float | None


@frozen
class DemandRow:
    backend: str
    requires_db: bool
    state: str
    weight: float
    jobs: int


@frozen
class UnfinishedRow:
    running: int
    cancelling: int
    unconfirmed: list[str]


@frozen
class LockedAgentRow:
    last_seen_at: datetime
    on_loss: str


ensure = command("backends", "ensure")
lock = query("backends", "lock", LimitsRow)
see = command("backends", "see")
seen = query("backends", "seen", SeenRow)
flags = query("backends", "flags", FlagRow)
set_flag = query("backends", "set_flag", str, scalar("id"))
running_jobs = query("backends", "running_jobs", str, scalar("id"))
unfinished = query("backends", "unfinished", UnfinishedRow)
declare_agent = query("backends", "declare_agent", bool, scalar("news"))
see_agent = query("backends", "see_agent", bool, scalar("undeclared"))
agents = query("backends", "agents", AgentRow)
lock_agent = query("backends", "lock_agent", LockedAgentRow)
forget_agent = command("backends", "forget_agent")
limits = query("backends", "limits", LimitsRow)
set_limits = command("backends", "set_limits")
demand = query("backends", "demand", DemandRow)
notify = command("backends", "notify")


def modes_of(rows: Iterable[FlagRow]) -> Modes:
    """What the flags of one backend mean."""
    return Modes.of({row.id: row.value for row in rows})


async def modes(tx: Tx, backend: str) -> Modes:
    """How a backend is switched now."""
    return modes_of(await flags.all(tx, backends=[backend]))
