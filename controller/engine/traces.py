"""The spans of RAPs and jobs, made from their history: when somebody asks, and for a collector once they have ended.

What is to be exported is in the database: written by the transaction that ends a job, gone only when a collector has
taken it: so it does not matter which controller exports it, or which one was killed.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from attrs import frozen

from controller.core.errors import NotFound
from controller.core.model import JobId, Principal, RapId, Verb
from controller.core.spans import Span
from controller.core.traces import job_spans, rap_span
from controller.engine.context import Context
from controller.store import traces
from controller.store.queries import Tx

WANTED: Final = timedelta(days=1)
"""For how long after an exporting controller was last heard of what ends is still kept for it."""
MOST_DUE: Final = 10_000
"""Jobs and RAPs that wait for a collector; beyond that the oldest are dropped."""


@frozen(kw_only=True)
class RapTrace:
    """A RAP's spans: its own, then each job's, dependencies first."""

    rap_id: RapId
    at: datetime
    """When this was so: spans that are not over have lasted until then."""
    spans: tuple[Span, ...]


async def rap_trace(ctx: Context, principal: Principal, rap_id: RapId) -> RapTrace:
    """All spans of a RAP, those included that are not over.

    :raises NotFound: no such RAP for this caller.
    """
    now = ctx.clock.now()
    async with ctx.db.connection() as tx:
        rap = await traces.raps.one(tx, ids=[rap_id], backends=list(principal.backends_for(Verb.READ)))
        if rap is None:
            raise NotFound(f"No RAP {rap_id}", rap_id=rap_id)
        facts = await traces.facts_of(tx, await traces.jobs_of.all(tx, rap_ids=[rap_id]))
    spans = [rap_span(rap, facts)]
    for each in facts:
        spans += job_spans(rap, each)
        await asyncio.sleep(0)  # a RAP may have thousands of spans, and others wait for the loop
    return RapTrace(rap_id=rap_id, at=now, spans=tuple(spans))


@frozen(kw_only=True)
class Due:
    """A job, or a RAP itself, that has ended and whose spans no collector has."""

    seq: int
    attempts: int
    """How often a collector was asked to take them."""
    spans: tuple[Span, ...]
    """None if the history was pruned meanwhile."""


async def claim(ctx: Context, most: int, *, lease: timedelta) -> Sequence[Due]:
    """What this controller may export now: nobody else does until the lease ends, or `settle` is called.

    :param most: how many jobs and RAPs at once.
    :param lease: after how long they are anybody's again, if this controller is killed.
    """
    now = ctx.clock.now()
    async with ctx.db.transaction() as tx:
        rows = await traces.claim.all(tx, now=now, until=now + lease, most=most)
    if not rows:
        return ()
    async with ctx.db.connection() as tx:
        return await _with_spans(tx, rows)


async def _with_spans(tx: Tx, rows: Sequence[traces.DueRow]) -> Sequence[Due]:
    raps = {rap.id: rap for rap in await traces.raps.all(tx, ids=list({row.rap_id for row in rows}), backends=None)}
    wanted = await traces.jobs.all(tx, ids=[row.job_id for row in rows if row.job_id])
    wanted += await traces.jobs_of.all(tx, rap_ids=[row.rap_id for row in rows if not row.job_id])
    facts = {each.job.id: each for each in await traces.facts_of(tx, list({job.id: job for job in wanted}.values()))}

    def spans(row: traces.DueRow) -> tuple[Span, ...]:
        rap = raps.get(row.rap_id)
        if rap is None:
            return ()
        if row.job_id is None:
            of_rap = [each for each in facts.values() if each.job.spec.rap_id == rap.id]
            return (rap_span(rap, of_rap),)
        job = facts.get(JobId(row.job_id))
        return job_spans(rap, job) if job else ()

    return [Due(seq=row.seq, attempts=row.attempts, spans=_over(spans(row))) for row in rows]


def _over(spans: Sequence[Span]) -> tuple[Span, ...]:
    """A span without an end is none to export; there are none where the history is whole."""
    return tuple(span for span in spans if span.end_ns is not None)


async def settle(ctx: Context, *, done: Sequence[int], failed: Sequence[int], untried: Sequence[int]) -> None:
    """What became of what was claimed, by `Due.seq`.

    :param done: a collector has it, or it is given up.
    :param failed: to be tried again.
    :param untried: the same, but nobody was asked.
    """
    async with ctx.db.transaction() as tx:
        if done:
            await traces.done.run(tx, seqs=list(done))
        if failed:
            await traces.give_back.run(tx, seqs=list(failed), tried=1)
        if untried:
            await traces.give_back.run(tx, seqs=list(untried), tried=0)


async def keep(ctx: Context) -> int:
    """Say that this controller exports, and make room; how many jobs and RAPs were dropped for it."""
    async with ctx.db.connection() as tx:
        await traces.want.run(tx, until=ctx.clock.now() + WANTED)
        return await traces.drop_oldest.one(tx, most=MOST_DUE) or 0
