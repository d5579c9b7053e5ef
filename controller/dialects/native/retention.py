"""`POST backends/{backend}/prune`: forget what finished long ago, a part per call."""

from datetime import timedelta
from typing import Final

from aiohttp import web
from attrs import frozen

from controller.dialects.native import query, times
from controller.engine import pruning
from controller.web import body, json_api
from controller.web.keys import ENGINE

BODY: Final = query.CONTRACT.shape("prune")


@frozen(kw_only=True)
class Prune:
    """Body of `POST backends/{backend}/prune`."""

    older_than_seconds: int
    dry_run: bool = False
    after: int = 0
    """0, or `next_after` of the answer before."""


@frozen(kw_only=True)
class Pruned:
    """Answer to it. While `next_after` is not null there is more: ask again with it as `after`, and add up."""

    backend: str
    cutoff: str
    dry_run: bool
    raps: int
    jobs: int
    kept: int
    outputs: int
    events: int
    logs: int
    tasks: int
    next_after: int | None


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_post("/backends/{backend}/prune", prune)


async def prune(request: web.Request) -> web.Response:
    """Forget a part of what finished long ago."""
    principal = await query.caller(request)
    asked = wanted(await body.read(request, query.MAX_BODY))
    done = await request.config_dict[ENGINE].prune(
        principal,
        request.match_info["backend"],
        older_than=timedelta(seconds=asked.older_than_seconds),
        after=asked.after,
        dry_run=asked.dry_run,
    )
    return json_api.send(pruned(done))


def wanted(raw: bytes) -> Prune:
    """The body.

    :raises MalformedBody: it is not what the contract says.
    """
    found = body.parse_unicode(raw)
    BODY.check(found)
    return Prune(**found)


def pruned(value: pruning.Pruned) -> Pruned:
    """What was done, in this API's words."""
    return Pruned(
        backend=value.backend,
        cutoff=times.timestamp(value.cutoff),
        dry_run=value.dry_run,
        raps=value.counts.raps,
        jobs=value.counts.jobs,
        kept=value.counts.kept,
        outputs=value.counts.outputs,
        events=value.counts.events,
        logs=value.counts.logs,
        tasks=value.counts.tasks,
        next_after=value.next_after,
    )
