"""`GET events`: what happens, as server-sent events, from now on or from where an earlier stream ended."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import structlog
from aiohttp import web
from attrs import frozen

from common import convert
from controller.core.errors import DomainError
from controller.core.happenings import Happened
from controller.core.model import RapId
from controller.dialects.native import query, times
from controller.engine.following import End, Reader
from controller.web import auth
from controller.web.event_stream import EventStream, Stalled, heartbeat, message
from controller.web.keys import ENGINE

HEARTBEAT_SECONDS: Final = 15.0

log = structlog.get_logger(__name__)


@frozen(kw_only=True)
class EventQuery:
    """The query of `GET events`."""

    backend: str | None = None
    rap: str | None = None
    since: str | None = None
    """Place of an earlier stream; the header `Last-Event-ID`, which browsers send, counts for more."""


@frozen(kw_only=True)
class Event:
    """The data of one event. `content` is what its kind says: see the contract."""

    kind: str
    at: str
    backend: str
    rap_id: str | None
    content: Mapping[str, Any]


@frozen(kw_only=True)
class Ready:
    """The data of the first event: which backends are followed."""

    backends: tuple[str, ...]


@frozen(kw_only=True)
class Notice:
    """The data of `reset`, `overrun` and `closing`: what happened to the stream, in words."""

    message: str


RESET: Final = Notice(message="What happened since then is not kept any more: read again whatever you show.")
ENDS: Final[Mapping[End, Notice]] = {
    End.OVERRUN: Notice(message="You read too slowly. Connect again with Last-Event-ID to go on."),
    End.CLOSING: Notice(message="This controller stops. Connect again with Last-Event-ID to go on."),
}


def add_to(app: web.Application) -> None:
    """Serve it. There is no HEAD of what has no end."""
    app.router.add_get("/events", follow_events, allow_head=False)


async def follow_events(request: web.Request) -> web.StreamResponse:
    """Events until the caller goes away, its token is revoked, or the process stops."""
    principal = await auth.client(request)
    wanted = event_query(request.query)
    rap = None if wanted.rap is None else RapId(query.identifier("RAP", wanted.rap))
    since = request.headers.get("Last-Event-ID", wanted.since)
    engine = request.config_dict[ENGINE]
    with await engine.follow(principal, backend=wanted.backend, rap_id=rap, since=since) as reader:
        stream = await EventStream.open(request)
        try:
            await _tell(request, reader, stream)
        except Stalled:
            log.info("event_reader_stalled", principal=principal.name)
        except DomainError as error:  # the token was revoked, or the database is away: coming again shows which
            log.info("event_stream_ended", principal=principal.name, reason=error.key)
    return stream.response


async def _tell(request: web.Request, reader: Reader, stream: EventStream) -> None:
    first = message("ready", convert.dumps(Ready(backends=reader.backends)), place=reader.place)
    reset = message("reset", convert.dumps(RESET), place=reader.place)
    await stream.send([first, reset] if reader.forgotten else [first])
    while True:
        news = await reader.next(HEARTBEAT_SECONDS, lambda: auth.client(request))
        if isinstance(news, End):
            await stream.send([message(news.value, convert.dumps(ENDS[news]), place=reader.place)])
            return
        if news:
            await stream.send(message(told.event.kind, _data(told.event), place=told.place) for told in news)
        else:
            await stream.send([heartbeat(reader.place)])


def event_query(given: Mapping[str, str]) -> EventQuery:
    """The query of `GET events`.

    :raises Rejected: with every fault, by the parameter's name.
    """
    parameters = query.Parameters(given)
    found = EventQuery(backend=parameters.text("backend"), rap=parameters.text("rap"), since=parameters.text("since"))
    parameters.done()
    return found


@lru_cache(maxsize=1024)
def _data(event: Happened) -> bytes:
    """The same bytes for all readers: events are compared by identity, and readers share those in memory."""
    return convert.dumps(
        Event(
            kind=event.kind,
            at=times.timestamp(event.at),
            backend=event.backend,
            rap_id=event.rap_id,
            content=event.content,
        )
    )
