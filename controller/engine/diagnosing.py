"""What is wrong with the database and a caller's backends, as far as the database tells (`core/diagnosis.py`)."""

from datetime import datetime, timedelta

import attrs
from attrs import frozen

from controller.core.diagnosis import (
    AgentFacts,
    BackendFacts,
    DatabaseFacts,
    Finding,
    Oldest,
    check_backend,
    check_database,
)
from controller.core.model import Flag, Principal, Verb
from controller.core.schedule import heaviest
from controller.engine.capacity import limits_of
from controller.engine.context import Context
from controller.store import backends, diagnosis
from controller.store.queries import Tx


@frozen(kw_only=True)
class Diagnosis:
    """What a controller finds wrong, or in order, about its database and some backends."""

    at: datetime
    findings: tuple[Finding, ...]


async def diagnose(ctx: Context, principal: Principal) -> Diagnosis:
    """Look at everything that the caller may read; nothing is changed.

    :raises Unavailable: the database is away.
    """
    slugs = [slug for slug in principal.backends_for(Verb.READ) if slug in ctx.backends]
    async with ctx.db.connection() as tx:
        now = ctx.clock.now()
        findings = check_database(await database_facts(tx), now)
        for slug in slugs:
            findings += await _of_backend(ctx, tx, slug, now)
    return Diagnosis(at=now, findings=tuple(findings))


async def database_facts(tx: Tx) -> DatabaseFacts:
    """What the server says of itself."""
    row = await diagnosis.database.one(tx)
    if row is None:
        raise RuntimeError("settings gave no row")
    return DatabaseFacts(**attrs.asdict(row))


async def _of_backend(ctx: Context, tx: Tx, slug: str, now: datetime) -> list[Finding]:
    limits = await limits_of(ctx, tx, slug)
    tasks = await diagnosis.tasks.one(tx, backend=slug, now=now)
    jobs = await diagnosis.jobs.one(tx, backend=slug)
    if tasks is None or jobs is None:
        raise RuntimeError("counting gave no row")
    seen = await backends.seen.one(tx, backends=[slug])
    facts = BackendFacts(
        slug=slug,
        last_seen_at=seen.at if seen else None,
        agents=[AgentFacts(**attrs.asdict(row)) for row in await diagnosis.agents.all(tx, backend=slug)],
        active_jobs=jobs.active,
        unclaimed=Oldest(count=tasks.unclaimed, since=tasks.unclaimed_since),
        expired=Oldest(count=tasks.expired, since=tasks.expired_since),
        cancels=Oldest(count=tasks.cancels, since=tasks.cancels_since),
        created=Oldest(count=jobs.created, since=jobs.created_since),
        without_task=await diagnosis.without_task.all(tx, backend=slug),
        too_heavy=await diagnosis.too_heavy.all(
            tx, backend=slug, heaviest=heaviest(limits.workers), db_heaviest=heaviest(limits.db_workers)
        ),
        paused_since=await _paused_since(tx, slug),
    )
    return check_backend(facts, now, timedelta(seconds=ctx.lease_seconds))


async def _paused_since(tx: Tx, slug: str) -> datetime | None:
    flags = await backends.flags.all(tx, backends=[slug])
    if not backends.modes_of(flags).paused:
        return None
    return next((row.changed_at for row in flags if row.id == Flag.PAUSED), None)
