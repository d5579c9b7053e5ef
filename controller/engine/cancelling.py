"""Cancelling: applied in the call itself, so that no later write can lose it.

A pending or running job fails with `cancelled_by_user` at once; a finished one keeps its state and only leaves the
workspace's memory (reference section 1.4; why at once: docs/adr).
"""

from collections.abc import Sequence

from controller.core.errors import NotFound
from controller.core.machine import Cancelled
from controller.core.model import Principal, RapId, Verb
from controller.engine import moves
from controller.engine.context import Context
from controller.store import backends, jobs, raps


async def cancel(ctx: Context, principal: Principal, rap_id: RapId, actions: Sequence[str]) -> int:
    """Cancel actions of a RAP; how many were named, repetitions included.

    :raises NotFound: no such RAP for this caller, or (`not_found`) an action has no job in it; nothing changed.
    """
    now = ctx.clock.now()
    async with ctx.db.transaction() as tx:
        rap = await raps.find.one(tx, id=rap_id)
        if rap is None or not principal.may(Verb.RUN, rap.backend):
            raise NotFound(f"No jobs found for rap_id {rap_id}", rap_id=rap_id)
        await backends.lock.run(tx, backend=rap.backend)
        found = await jobs.lock_of_rap.all(tx, rap_id=rap_id, backends=[rap.backend])
        missing = sorted(set(actions) - {job.spec.action for job in found})
        if missing:
            raise NotFound(
                f"Jobs matching requested cancelled actions could not be found: {','.join(missing)}",
                rap_id=rap_id,
                not_found=missing,
            )
        chosen = [job for job in found if job.spec.action in set(actions)]
        made = [moves.of(job, Cancelled(), now) for job in chosen]
        await moves.intervene(tx, rap.backend, made, now)
    moves.announce(ctx, made)
    return len(actions)
