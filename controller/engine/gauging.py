"""How things stand at this moment, for metrics: of all backends together, a few small queries on one connection.

Nobody's rights are asked: whoever serves the numbers decides who reads them (`controller/telemetry`).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from attrs import field, frozen

from controller.core.codes import StatusCode
from controller.core.diagnosis import RETIRED
from controller.engine.context import Context
from controller.store import backends, gauges


@frozen(kw_only=True)
class CodeGauge:
    """The unfinished jobs with one status code."""

    jobs: int
    since: datetime
    """When the one that has had the code longest got it."""


@frozen(kw_only=True)
class AgentsGauge:
    """The agents of a backend with one executor. What they tell of themselves is None if none of them tells it."""

    executor: str
    """In the agents' own words, so it may be any text."""
    alive: int
    """Heard of within a lease."""
    silent: int
    """Not heard of within a lease, and still missed (`core/diagnosis.py`, RETIRED)."""
    telling: int
    """Living ones whose egress policy lets metrics out."""
    slots: int
    """Of the living, together."""
    slots_used: float | None
    jobs_running: float | None
    reports_queued: float | None
    disk_free_ratio: float | None
    """Of the one with the fullest disk, 0 to 1."""
    loop_lag_seconds: float | None
    """Of the slowest."""


@frozen(kw_only=True)
class BackendGauge:
    """One backend."""

    slug: str
    seen_at: datetime | None
    paused: bool
    db_maintenance: bool
    queue: dict[StatusCode, CodeGauge]
    unclaimed: int
    """Run tasks that no agent has taken."""
    unclaimed_since: datetime | None
    expired: int
    """Run tasks whose lease is over."""
    agents: Sequence[AgentsGauge] = field(factory=tuple)


@frozen(kw_only=True)
class Gauges:
    """How things stand."""

    at: datetime
    backends: Sequence[BackendGauge]


async def gauge(ctx: Context) -> Gauges:
    """Count what is unfinished, and who is there.

    :raises Unavailable: the database is away.
    """
    now = ctx.clock.now()
    slugs = list(ctx.backends)
    async with ctx.db.connection() as tx:
        queue = await gauges.queue.all(tx, backends=slugs)
        tasks = {row.backend: row for row in await gauges.tasks.all(tx, backends=slugs, now=now)}
        agents = await gauges.agents.all(
            tx,
            backends=slugs,
            alive_since=now - timedelta(seconds=ctx.lease_seconds),
            missed_since=now - RETIRED,
        )
        seen = {row.backend: row.at for row in await backends.seen.all(tx, backends=slugs)}
        flags = await backends.flags.all(tx, backends=slugs)
    return Gauges(
        at=now,
        backends=[
            _backend(
                slug,
                seen.get(slug),
                [row for row in flags if row.backend == slug],
                [row for row in queue if row.backend == slug],
                tasks.get(slug),
                [row for row in agents if row.backend == slug],
            )
            for slug in slugs
        ],
    )


def _backend(
    slug: str,
    seen_at: datetime | None,
    flags: Sequence[backends.FlagRow],
    queue: Sequence[gauges.QueueRow],
    tasks: gauges.TasksRow | None,
    agents: Sequence[gauges.AgentsRow],
) -> BackendGauge:
    modes = backends.modes_of(flags)
    return BackendGauge(
        slug=slug,
        seen_at=seen_at,
        paused=modes.paused,
        db_maintenance=modes.db_maintenance,
        queue={StatusCode(row.code): CodeGauge(jobs=row.jobs, since=row.since) for row in queue},
        unclaimed=tasks.unclaimed if tasks else 0,
        unclaimed_since=tasks.unclaimed_since if tasks else None,
        expired=tasks.expired if tasks else 0,
        agents=[_agents(row) for row in agents],
    )


def _agents(row: gauges.AgentsRow) -> AgentsGauge:
    return AgentsGauge(
        executor=row.executor,
        alive=row.alive,
        silent=row.silent,
        telling=row.telling,
        slots=row.slots,
        slots_used=row.slots_used,
        jobs_running=row.jobs_running,
        reports_queued=row.reports_queued,
        disk_free_ratio=row.disk_free_ratio,
        loop_lag_seconds=row.loop_lag_seconds,
    )
