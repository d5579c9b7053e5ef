"""`GET jobs/{job}/log`: a job's log, a part at a time."""

from collections.abc import Mapping
from typing import Final

from aiohttp import web
from attrs import frozen

from controller.dialects.native import query
from controller.engine import results
from controller.web import auth, json_api
from controller.web.keys import ENGINE

DEFAULT_LOG: Final = 64 * 1024
MAX_LOG: Final = 1024 * 1024
"""Characters of a log in one answer."""
MAX_OFFSET: Final = 2_000_000_000
"""Characters; offset and limit together stay below what a 32-bit column counts to."""


@frozen(kw_only=True)
class LogQuery:
    """The query of `GET jobs/{id}/log`; without `attempt` it is about the newest one."""

    offset: int = 0
    limit: int = DEFAULT_LOG
    attempt: int | None = None


@frozen(kw_only=True)
class Log:
    """Answer to `GET jobs/{id}/log`. Offsets count characters; the next page starts at `next_offset`."""

    job_id: str
    attempt: int
    offset: int
    text: str
    next_offset: int
    complete: bool
    truncated: bool


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/jobs/{job}/log", show_log)


async def show_log(request: web.Request) -> web.Response:
    """A part of a job's log."""
    principal = await auth.client(request)
    job = query.job_id(request)
    wanted = log_query(request.query)
    page = await request.config_dict[ENGINE].job_log(
        principal, job, attempt=wanted.attempt, offset=wanted.offset, limit=wanted.limit
    )
    return json_api.send(log(page, wanted.offset))


def log_query(given: Mapping[str, str]) -> LogQuery:
    """The query of `GET jobs/{id}/log`.

    :raises Rejected: with every fault, by the parameter's name.
    """
    parameters = query.Parameters(given)
    found = LogQuery(
        offset=parameters.number("offset", least=0, most=MAX_OFFSET) or 0,
        limit=parameters.number("limit", least=1, most=MAX_LOG) or DEFAULT_LOG,
        attempt=parameters.number("attempt", least=1, most=2**31 - 1),
    )
    parameters.done()
    return found


def log(value: results.LogPage, offset: int) -> Log:
    """A part of a log that was asked for from `offset`."""
    return Log(
        job_id=value.job_id,
        attempt=value.attempt,
        offset=offset,
        text=value.text,
        next_offset=value.next_offset,
        complete=value.complete,
        truncated=value.truncated,
    )
