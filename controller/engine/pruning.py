"""Forgetting what finished long ago, without changing what the workspaces remember.

Of a RAP whose jobs all ended before the cut-off, history, logs and inactive tasks go. The RAP, its jobs and their
outputs' names go as well, unless something needs them still (`pruning.sql`, `removable`): so plans are made as before,
and a RAP with a job that is not finished is never touched. What is removed is unknown from then on: its status is
unrecognised, and a create with its id makes it anew.

Work is done in small transactions, each under the backend's lock (it must not race with a create that just plans with
what is about to go), by several controllers at once if it so happens.
"""

from datetime import datetime, timedelta
from typing import Final

import structlog
from attrs import asdict, evolve, frozen

from controller.core.errors import Rejected
from controller.core.model import Principal
from controller.engine.admission import admit_operator
from controller.engine.context import Context
from controller.store import backends, pruning
from controller.store.db import TakenBack
from controller.store.queries import Tx

log = structlog.get_logger(__name__)

LEAST_AGE: Final = timedelta(days=1)
"""Portals ask for the outcome of a RAP that they think is active: it must be there to be found."""
LONGEST_AGE: Final = timedelta(days=36_500)
_PAGE: Final = 100
"""RAPs per transaction: the scheduler of the backend waits no longer than their removal takes."""
_CALL_SECONDS: Final = 10.0
"""How long one call of an operator's works before it answers how to go on."""


@frozen(kw_only=True)
class Counts:
    """How much was removed, or would be."""

    raps: int = 0
    """RAPs that are gone with everything."""
    jobs: int = 0
    """Their jobs."""
    kept: int = 0
    """Finished RAPs that something needs still: only history, logs and tasks of their jobs are gone."""
    outputs: int = 0
    """Names of outputs; the rest are rows of history, chunks of logs, and tasks."""
    events: int = 0
    logs: int = 0
    tasks: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: mine + getattr(other, name) for name, mine in asdict(self).items()})


@frozen(kw_only=True)
class Pruned:
    """What a run of pruning has done, or would do."""

    backend: str
    cutoff: datetime
    dry_run: bool
    counts: Counts = Counts()
    next_after: int | None = None
    """Where to go on; None at the end."""


async def prune(
    ctx: Context, principal: Principal, backend: str, *, older_than: timedelta, after: int, dry_run: bool
) -> Pruned:
    """Forget what finished more than `older_than` ago, for some seconds; the answer says where to go on, if at all.

    :param after: 0, or `next_after` of an earlier answer.
    :param dry_run: count, and change nothing.
    :raises NotFound: no such backend for this caller.
    :raises Forbidden: the caller does not manage it.
    :raises Rejected: `older_than` is less than a day or more than a hundred years.
    """
    admit_operator(principal, backend)
    if not LEAST_AGE <= older_than <= LONGEST_AGE:
        bounds = f"at least {LEAST_AGE.days} day and at most {LONGEST_AGE.days} days"
        raise Rejected(f"older_than_seconds must be {bounds}", field="older_than_seconds")
    cutoff = ctx.clock.now() - older_than
    done = await _prune(ctx, backend, cutoff, after=after, dry_run=dry_run, seconds=_CALL_SECONDS)
    _tell(done, principal.name)
    return done


async def prune_by_setting(ctx: Context, backend: str, older_than: timedelta) -> Pruned:
    """The same for the controller's own loop: to the end.

    :raises Unavailable: the database is away; what was done until then stays done.
    """
    done = await _prune(ctx, backend, ctx.clock.now() - older_than, after=0, dry_run=False, seconds=None)
    _tell(done, "RAP_RETENTION_DAYS")
    return done


async def _prune(
    ctx: Context, backend: str, cutoff: datetime, *, after: int, dry_run: bool, seconds: float | None
) -> Pruned:
    """Page after page until the end, or for `seconds`: at least one page, so that every call gets on."""
    began = ctx.clock.monotonic()
    total = Pruned(backend=backend, cutoff=cutoff, dry_run=dry_run)
    while True:
        async with ctx.db.connection() as tx:
            rows = await pruning.page.all(tx, backend=backend, cutoff=cutoff, after=after, page_size=_PAGE)
        finished = [row.id for row in rows if row.finished]
        if finished:
            total = evolve(total, counts=total.counts + await _prune_page(ctx, total, finished))
        if len(rows) < _PAGE:
            return total
        after = rows[-1].seq
        if seconds is not None and ctx.clock.monotonic() - began >= seconds:
            return evolve(total, next_after=after)


async def _prune_page(ctx: Context, run: Pruned, rap_ids: list[str]) -> Counts:
    """One transaction. A dry run does all of it and takes it back, so that it cannot count differently."""
    try:
        async with ctx.db.transaction() as tx:
            await backends.lock.run(tx, backend=run.backend)
            counted = await _forget(tx, run, rap_ids)
            if run.dry_run:
                raise TakenBack(counted)
            return counted
    except TakenBack as taken_back:
        answer: Counts = taken_back.answer
        return answer


async def _forget(tx: Tx, run: Pruned, rap_ids: list[str]) -> Counts:
    job_ids = await pruning.jobs_of.all(tx, rap_ids=rap_ids)
    cleared = await pruning.clear.one(tx, job_ids=job_ids)
    removed = await pruning.removable.all(tx, backend=run.backend, cutoff=run.cutoff, rap_ids=rap_ids)
    removed_jobs = await pruning.jobs_of.all(tx, rap_ids=removed)
    await pruning.forget_late_logs.run(tx, job_ids=removed_jobs)
    await pruning.forget_needs.run(tx, job_ids=removed_jobs)
    await pruning.forget_dependants.run(tx, job_ids=removed_jobs)
    outputs = await pruning.remove_outputs.one(tx, job_ids=removed_jobs)
    await pruning.remove_jobs.run(tx, job_ids=removed_jobs)
    await pruning.remove_raps.run(tx, rap_ids=removed)
    if cleared is None or outputs is None:
        raise RuntimeError("counting gave no row")
    return Counts(
        raps=len(removed),
        jobs=len(removed_jobs),
        kept=len(rap_ids) - len(removed),
        outputs=outputs,
        events=cleared.events,
        logs=cleared.logs,
        tasks=cleared.tasks,
    )


def _tell(done: Pruned, principal: str) -> None:
    if not done.dry_run:
        log.info(
            "pruned",
            backend=done.backend,
            principal=principal,
            cutoff=done.cutoff.isoformat(),
            **asdict(done.counts),
        )
