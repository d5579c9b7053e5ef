"""What is not finished on the caller's backends, by status code."""

from collections.abc import Sequence
from datetime import datetime

from attrs import frozen

from controller.core.codes import StatusCode
from controller.core.model import Principal, Verb
from controller.engine.context import Context
from controller.store import gauges


@frozen(kw_only=True)
class QueueView:
    """The unfinished jobs of one backend with one status code."""

    backend: str
    code: StatusCode
    jobs: int
    since: datetime
    """When the one that has had the code longest got it."""


async def queue(ctx: Context, principal: Principal) -> Sequence[QueueView]:
    """Every code that some unfinished job has, in the order in which codes are listed.

    :raises Unavailable: the database is away.
    """
    async with ctx.db.connection() as tx:
        rows = await gauges.queue.all(tx, backends=list(principal.backends_for(Verb.READ)))
    order = list(StatusCode)
    found = [QueueView(backend=row.backend, code=StatusCode(row.code), jobs=row.jobs, since=row.since) for row in rows]
    return sorted(found, key=lambda each: order.index(each.code))
