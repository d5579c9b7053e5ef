"""How much of a backend jobs may use: what the settings say, unless an operator has set it while running.

What an operator sets is a row of the database, so it holds for every controller from its commit on: a scheduling pass
and the storing of a RAP read it with the backend's lock. Lowering a limit stops nothing that runs (reference 3.5).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import structlog
from attrs import frozen

from controller.core.codes import JobState
from controller.core.errors import Rejected
from controller.core.model import Principal
from controller.core.schedule import Limits, heaviest
from controller.engine.admission import admit_operator, managed
from controller.engine.context import Context
from controller.store import backends
from controller.store.queries import Tx

log = structlog.get_logger(__name__)

POOLS: Final = ("workers", "db_workers")
MOST: Final = 1_000_000
"""The sum of weights that a pool may have; a backend with more is a slip of the finger."""


@frozen(kw_only=True)
class PoolView:
    """One of a backend's two pools of capacity, in sums of weights."""

    configured: float
    """What the settings say."""
    override: float | None
    """What an operator has set; None: nothing."""
    limit: float
    """What holds."""
    in_use: float
    running: int
    """Jobs."""
    pending: int
    too_heavy: int
    """Pending jobs that weigh more than the limit: they wait until it is raised. None in a pool that is closed (0)."""


@frozen(kw_only=True)
class CapacityView:
    """How much of a backend jobs may use, and do."""

    backend: str
    workers: PoolView
    db_workers: PoolView


@frozen(kw_only=True)
class CapacitySet:
    """What an operator's change of limits did."""

    changed: tuple[str, ...]
    """Names of the limits that are others now; empty if they were so already."""
    capacity: CapacityView


def effective(configured: Limits, row: backends.LimitsRow | None) -> Limits:
    """The limits that hold: the operator's where there are some."""
    if row is None:
        return configured
    return Limits(
        workers=configured.workers if row.workers is None else row.workers,
        db_workers=configured.db_workers if row.db_workers is None else row.db_workers,
    )


async def limits_of(ctx: Context, tx: Tx, backend: str) -> Limits:
    """The limits that hold now, without a lock."""
    return effective(ctx.backends[backend].limits, await backends.limits.one(tx, backends=[backend]))


async def view(ctx: Context, principal: Principal, wanted: Sequence[str] | None = None) -> Sequence[CapacityView]:
    """Limits and use of these backends (None: of all that the caller manages).

    :raises NotFound: one of them is no backend for this caller.
    :raises Forbidden: the caller does not manage them.
    """
    slugs = managed(principal, wanted)
    async with ctx.db.connection() as tx:
        return await _read(ctx, tx, slugs)


async def set_limits(
    ctx: Context, principal: Principal, backend: str, changes: Mapping[str, float | None]
) -> CapacitySet:
    """Change one or both pools of a backend, and let the scheduler look at once.

    :param changes: pool (`workers`, `db_workers`) -> its new limit (0 closes it), or None for the settings' value.
    :raises NotFound: no such backend for this caller.
    :raises Forbidden: the caller does not manage it.
    :raises Rejected: a limit is no usable number; nothing was changed.
    """
    admit_operator(principal, backend)
    _check(changes)
    async with ctx.db.transaction() as tx:
        row = await backends.lock.one(tx, backend=backend)
        before: dict[str, float | None] = {name: getattr(row, name) for name in POOLS}
        after = before | dict(changes)
        changed = tuple(name for name in POOLS if before[name] != after[name])
        if changed:
            await backends.set_limits.run(tx, backend=backend, **after)
            await backends.notify.run(tx, channel=backends.SCHEDULE_CHANNEL, backend=backend)
        (found,) = await _read(ctx, tx, [backend])
    for name in changed:
        log.info(
            "limit_changed", backend=backend, limit=name, value=after[name], was=before[name], principal=principal.name
        )
    return CapacitySet(changed=changed, capacity=found)


def _check(changes: Mapping[str, float | None]) -> None:
    for name, value in changes.items():
        if name not in POOLS:
            raise Rejected(f"There is no limit {name!r}; there are {' and '.join(POOLS)}.", field=name)
        if value is not None and not (math.isfinite(value) and 0 <= value <= MOST):
            raise Rejected(f"{name} must be a number from 0 to {MOST}", field=name)


async def _read(ctx: Context, tx: Tx, slugs: Sequence[str]) -> list[CapacityView]:
    rows = {row.slug: row for row in await backends.limits.all(tx, backends=list(slugs))}
    demand = await backends.demand.all(tx, backends=list(slugs))

    def pool(slug: str, name: str) -> PoolView:
        configured: float = getattr(ctx.backends[slug].limits, name)
        limit: float = getattr(effective(ctx.backends[slug].limits, rows.get(slug)), name)
        mine = [each for each in demand if each.backend == slug and each.requires_db == (name == "db_workers")]
        pending = [each for each in mine if each.state == JobState.PENDING]
        return PoolView(
            configured=configured,
            override=getattr(rows.get(slug), name, None),
            limit=limit,
            in_use=sum(each.weight * each.jobs for each in mine if each.state == JobState.RUNNING),
            running=sum(each.jobs for each in mine if each.state == JobState.RUNNING),
            pending=sum(each.jobs for each in pending),
            too_heavy=sum(each.jobs for each in pending if each.weight > heaviest(limit)),
        )

    return [
        CapacityView(backend=slug, workers=pool(slug, "workers"), db_workers=pool(slug, "db_workers")) for slug in slugs
    ]
