"""Agents and their tasks: declaring, claiming under leases, handing back, and the Task API's plain listing.

A claim is heartbeat, lease renewal, recovery and long-poll in one (docs/adr). What an agent holds is only ever known
from the rows, so a lost answer costs a repetition and nothing else.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import attrs

from common.protocol import (
    ClaimRequest,
    ClaimResponse,
    Declaration,
    ReleaseRequest,
    ReleaseResponse,
    TaskOffer,
    Welcome,
)
from controller.core import happenings
from controller.core.codes import StatusCode
from controller.core.happenings import AgentNews
from controller.core.machine import Reset
from controller.core.model import JobId, Task
from controller.engine import moves
from controller.engine.context import Context
from controller.store import backends, events, jobs, tasks


async def declare_agent(ctx: Context, backend: str, agent: str, declaration: Declaration) -> Welcome:
    """Store what the agent says of itself."""
    now = ctx.clock.now()
    async with ctx.db.transaction() as tx:
        # In the order of a claim: one of an earlier start of this agent may still be under way.
        await backends.see.run(tx, backend=backend, now=now)
        news = await backends.declare_agent.one(
            tx,
            backend=backend,
            id=agent,
            version=declaration.version,
            executor=declaration.executor,
            slots=declaration.slots,
            egress=attrs.asdict(declaration.egress),
            on_loss=declaration.on_loss,
            now=now,
            alive_since=now - timedelta(seconds=ctx.lease_seconds),
        )
        if news:
            await events.record(tx, backend, [happenings.of_agent(agent, AgentNews.DECLARED, now)])
    return Welcome(lease_seconds=ctx.lease_seconds, poll_seconds=ctx.poll_seconds, server_time=now.isoformat())


async def claim(
    ctx: Context, backend: str, request: ClaimRequest, *, admit: Callable[[], Awaitable[object]] | None = None
) -> ClaimResponse:
    """Tasks for the agent, at once or as soon as there are any; nothing once its `wait` is over.

    Register as a waiter, look, sleep: whatever is written after the look wakes the sleeper.

    :param admit: asked before every look but the first: raises once the agent's token was revoked, so that a poll
        which was open before gets nothing any more.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + max(0.0, min(request.wait, ctx.poll_seconds))
    one_look = ctx.looking.setdefault((backend, request.agent), asyncio.Lock())
    with ctx.wakeups.waiter(backends.TASKS_CHANNEL, backend) as woken:
        while True:
            woken.clear()
            async with one_look:
                answer = await _look(ctx, backend, request)
            if answer.tasks or answer.revoked or ctx.closing.is_set():
                return answer
            try:
                async with asyncio.timeout_at(deadline):
                    await woken.wait()
            except TimeoutError:
                return answer
            if admit is not None:
                await admit()


async def _look(ctx: Context, backend: str, request: ClaimRequest) -> ClaimResponse:
    now = ctx.clock.now()
    lease = now + timedelta(seconds=ctx.lease_seconds)
    holding = [held.task_id for held in request.holding]
    async with ctx.db.transaction() as tx:
        await backends.see.run(tx, backend=backend, now=now)
        undeclared = await backends.see_agent.one(
            tx, backend=backend, id=request.agent, slots=request.slots, now=now, metrics=request.metrics
        )
        revoked: list[str] = []
        if holding:
            await tasks.renew.run(tx, backend=backend, agent=request.agent, holding=holding, lease=lease)
            revoked = await tasks.revoked.all(tx, backend=backend, agent=request.agent, holding=holding)
        claimed = await tasks.claim.all(
            tx,
            backend=backend,
            agent=request.agent,
            holding=holding,
            slots=max(0, request.slots),
            lease=lease,
        )
    for each in claimed:
        if each.fresh:
            ctx.observer.dispatched(each.task, seconds=(now - each.task.created_at).total_seconds())
    return ClaimResponse(
        tasks=tuple(_offer(each.task) for each in claimed), revoked=tuple(revoked), undeclared=bool(undeclared)
    )


def _offer(task: Task) -> TaskOffer:
    return TaskOffer(
        id=task.id,
        type=task.type.value,
        attempt=task.attempt,
        job_id=task.job_id,
        definition=task.definition,
        attributes=task.attributes,
        traceparent=task.traceparent,
        created_at=task.created_at.timestamp(),
        time_limit=task.time_limit,
    )


async def release(ctx: Context, backend: str, request: ReleaseRequest) -> ReleaseResponse:
    """Void the attempts that the agent hands back; their jobs return to the queue."""
    now = ctx.clock.now()
    async with ctx.db.transaction() as tx:
        await backends.lock.run(tx, backend=backend)
        handed_back = await tasks.release.all(
            tx, backend=backend, agent=request.agent, ids=[held.task_id for held in request.tasks]
        )
        ids = [JobId(job) for job in handed_back]
        reset = Reset(code=StatusCode.WAITING_ON_NEW_TASK, message="Job was handed back by its agent and will restart")
        made = [moves.of(job, reset, now, agent_lost=True) for job in await jobs.lock.all(tx, ids=ids)]
        if made:
            await tasks.void_runs.run(tx, job_ids=ids, now=now)
            await jobs.write(tx, made)
            await backends.notify.run(tx, channel=backends.SCHEDULE_CHANNEL, backend=backend)
    moves.announce(ctx, made)
    return ReleaseResponse(released=len(made))


async def active_tasks(ctx: Context, backend: str) -> Sequence[Task]:
    """The Task API's listing; asking for it is the heartbeat (reference section 2.3)."""
    async with ctx.db.transaction() as tx:
        await backends.see.run(tx, backend=backend, now=ctx.clock.now())
        return await tasks.list_active.all(tx, backend=backend)
