"""`/ui/events`: that something has changed, as it happens; the page then fetches itself again.

It is the native API's stream of events (`engine/following.py`), told to a browser: with its cookie, and without what
has happened, since a page is made from the database and not from events. However much happens, a browser is told at
most once a second. A page says from where on it wants to hear, so nothing falls between page and stream.
"""

from typing import Final

import structlog
from aiohttp import web
from yarl import URL

from controller.core.errors import DomainError
from controller.core.model import Principal, RapId
from controller.dialects.ui import asking, session
from controller.engine.facade import Engine
from controller.engine.following import End, Reader
from controller.web.event_stream import EventStream, Stalled, heartbeat, message
from controller.web.keys import CLOCK, ENGINE

HEARTBEAT_SECONDS: Final = 15.0
PAUSE_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


def add_to(app: web.Application) -> None:
    """Serve it. There is no HEAD of what has no end."""
    app.router.add_get("/events", follow, allow_head=False)


async def source(engine: Engine, principal: Principal, *, rap: RapId | None = None) -> str:
    """Where a page that is read from now on hears of what changes afterwards.

    :raises NotFound: no such RAP for this caller.
    :raises Unavailable: the database is away.
    """
    reader = await engine.follow(principal, backend=None, rap_id=rap, since=None)
    wanted = {"since": reader.place, **({"rap": rap} if rap else {})}
    return str(URL("/ui/events").with_query(wanted))


async def follow(request: web.Request) -> web.StreamResponse:
    """`change` whenever something has, until the browser goes away, the session ends, or the process stops."""
    visitor = await session.visitor(request)
    rap = asking.text(request, "rap")
    if rap is not None and not asking.ID.fullmatch(rap):
        raise web.HTTPNotFound
    since = request.headers.get("Last-Event-ID", request.query.get("since"))
    engine: Engine = request.config_dict[ENGINE]
    with await engine.follow(
        visitor.principal, backend=None, rap_id=RapId(rap) if rap else None, since=since
    ) as reader:
        stream = await EventStream.open(request)
        try:
            await _tell(request, reader, stream)
        except Stalled:
            log.info("event_reader_stalled", principal=visitor.principal.name)
        except DomainError as error:  # the session is over, or the database is away: coming again shows which
            log.info("event_stream_ended", principal=visitor.principal.name, reason=error.key)
    return stream.response


async def _tell(request: web.Request, reader: Reader, stream: EventStream) -> None:
    clock = request.config_dict[CLOCK]
    # Also what makes a browser say at once that it is connected.
    await stream.send([_change(reader) if reader.forgotten else heartbeat(reader.place)])
    while True:
        news = await reader.next(HEARTBEAT_SECONDS, lambda: session.visitor(request))
        if news is End.CLOSING:
            return
        await stream.send([_change(reader) if news else heartbeat(reader.place)])
        if news is End.OVERRUN:
            return
        if news:
            await clock.sleep(PAUSE_SECONDS)


def _change(reader: Reader) -> bytes:
    return message("change", b"{}", place=reader.place)
