"""Taking work away from agents that fell silent, or that an operator knows to be gone for good.

A lease that ended is acted upon only while another agent of the backend is alive: the attempt becomes void and its job
goes back to the queue, or fails if its executor declared that it must not run twice. The attempt number fences the old
holder off: whatever it still reports is stale, and its next claim tells it to stop.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import structlog
from attrs import frozen

from common.protocol import OnLoss
from controller.core import happenings
from controller.core.errors import Conflict, NotFound
from controller.core.happenings import AgentNews
from controller.core.machine import Move
from controller.core.model import JobId, Principal
from controller.core.outcome import after_loss
from controller.engine import moves
from controller.engine.admission import admit_operator
from controller.engine.context import Context
from controller.store import backends, events, jobs, tasks
from controller.store.queries import Tx
from controller.store.tasks import AbandonedRow

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class Forgotten:
    """What became of the work of an agent that is gone for good."""

    backend: str
    agent: str
    jobs: tuple[JobId, ...]
    """Jobs that it held: back in the queue, or failed if they may not run twice."""
    stops: int
    """Stops and checks that it can no longer confirm."""


async def take_over(ctx: Context, backend: str) -> int:
    """Void the attempts of silent agents; how many.

    :raises Unavailable: the database is away; nothing was done.
    """
    now = ctx.clock.now()
    async with ctx.db.transaction() as tx:
        await backends.lock.run(tx, backend=backend)
        alive_since = now - timedelta(seconds=ctx.lease_seconds)
        if await tasks.hand_over_releases.all(tx, backend=backend, now=now, gone=None):
            await backends.notify.run(tx, channel=backends.TASKS_CHANNEL, backend=backend)
        found = await tasks.abandoned.all(tx, backend=backend, now=now, alive_since=alive_since)
        if not found:
            return 0
        made = await _take_away(ctx, tx, backend, found, {row.agent: "fell silent" for row in found}, now)
        silent = sorted({row.agent for row in found})
        await events.record(tx, backend, [happenings.of_agent(each, AgentNews.SILENT, now) for each in silent])
    log.warning("agents_silent", backend=backend, agents=silent, jobs=len(found))
    moves.announce(ctx, made)
    return len(made)


async def forget_agent(ctx: Context, principal: Principal, backend: str, agent: str) -> Forgotten:
    """Take all work from an agent whose machine is gone, without waiting for another one, and forget it.

    Its jobs are treated as a lost lease's. What only it could have confirmed, stops above all, counts as done.

    :raises NotFound: no such backend for this caller, or no such agent.
    :raises Forbidden: the caller does not manage the backend.
    :raises Conflict: the agent was heard of within the last lease, so it is not gone.
    """
    admit_operator(principal, backend)
    now = ctx.clock.now()
    async with ctx.db.transaction() as tx:
        await backends.lock.run(tx, backend=backend)
        known = await backends.lock_agent.one(tx, backend=backend, id=agent)
        if known is None:
            raise NotFound(f"Backend {backend!r} has no agent {agent!r}.", agent=agent)
        # Of a living agent no more than the clocks' difference is negative; a clock that was set back is another thing.
        silent = now - known.last_seen_at
        if abs(silent) < timedelta(seconds=ctx.lease_seconds):
            raise Conflict(
                f"Agent {agent!r} was seen {silent.total_seconds():.0f} s ago. Stop it first; it counts as gone after"
                f" {ctx.lease_seconds:g} s of silence.",
                agent=agent,
            )
        held = await tasks.held_by.all(tx, backend=backend, agent=agent, on_loss=known.on_loss)
        made = await _take_away(ctx, tx, backend, held, {agent: "is gone"}, now)
        stops = await tasks.void_others_of.all(tx, backend=backend, agent=agent, now=now)
        if await tasks.hand_over_releases.all(tx, backend=backend, now=now, gone=agent):
            await backends.notify.run(tx, channel=backends.TASKS_CHANNEL, backend=backend)
        await backends.forget_agent.run(tx, backend=backend, id=agent)
        await events.record(tx, backend, [happenings.of_agent(agent, AgentNews.FORGOTTEN, now)])
    log.warning("agent_forgotten", backend=backend, agent=agent, jobs=len(made), principal=principal.name)
    moves.announce(ctx, made)
    return Forgotten(backend=backend, agent=agent, jobs=tuple(move.job.id for move in made), stops=len(stops))


async def _take_away(
    ctx: Context, tx: Tx, backend: str, held: Sequence[AbandonedRow], fates: Mapping[str, str], now: datetime
) -> list[Move]:
    """Void these attempts and move their jobs on. `fates`: agent -> what happened to it, for the history."""
    holder = {JobId(row.job_id): row for row in held}
    if not holder:
        return []
    await tasks.void_runs.all(tx, job_ids=list(holder), now=now)
    made = []
    for job in await jobs.lock.all(tx, ids=list(holder)):
        lost = holder[job.id]
        event = after_loss(
            job,
            f"Its agent {lost.agent} {fates[lost.agent]}.",
            OnLoss(lost.on_loss),
            retry=ctx.retry,
            jitter=ctx.jitter(),
        )
        made.append(moves.of(job, event, now, agent_lost=True))
    await jobs.write(tx, made)
    await backends.notify.run(tx, channel=backends.SCHEDULE_CHANNEL, backend=backend)
    return made
