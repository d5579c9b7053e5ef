"""Following what happens: from now on, or from the place where somebody stopped reading, without loss or repetition.

A reader's place is the number of the last event that it knows of each backend (migration 0007: these numbers have no
gaps, and their order is that of the commits). What is not in memory any more is read from the database, a page at a
time and at the reader's own speed, until the reader is up to date; from then on it lives on what `Broadcast` holds, and
is dropped once it falls further behind than that. Nothing is buffered for anybody.
"""

import asyncio
import enum
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

import structlog
from attrs import frozen

from controller.core.errors import NotFound, Rejected, Unavailable
from controller.core.happenings import Happened
from controller.core.model import Principal, RapId, Verb
from controller.engine.context import Context
from controller.store import events, raps

log = structlog.get_logger(__name__)

MOST_READERS: Final = 5_000
"""Readers of one process. Each holds a connection open; more than that is somebody's mistake."""
PAGE: Final = 200
"""Events in one answer, so that what is under way to a reader stays small."""

_PART: Final = re.compile(r"([a-z0-9_-]{1,200}):(0|[1-9][0-9]{0,18})", re.ASCII)
_LONGEST_PLACE: Final = 8192
_LAST: Final = 2**63 - 1


@frozen(eq=False)
class Told:
    """One event for one reader."""

    event: Happened
    place: str
    """What to give as `since` to go on after it."""


class End(enum.StrEnum):
    """Why there will be nothing more."""

    OVERRUN = "overrun"
    """The reader was too slow. It may come again, and go on from its place."""
    CLOSING = "closing"
    """This process is about to stop. Another one goes on from the reader's place."""


class Reader:
    """One who follows; made by `follow`. A context manager: leaving it is what ends it.

    :param place: backend -> number of the last event that is known, for the backends that are followed.
    """

    def __init__(self, ctx: Context, place: Mapping[str, int], rap_id: RapId | None, *, forgotten: bool) -> None:
        self._ctx = ctx
        self._broadcast = ctx.broadcast
        self._place = dict(place)
        self._rap_id = rap_id
        self._live: set[str] = set()
        self._tokens = ctx.known_tokens.generation
        self.forgotten = forgotten
        """Whether events after the place that the reader gave are not kept any more: it must read all lists anew."""

    def __enter__(self) -> Self:
        self._broadcast.join()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._broadcast.leave()

    @property
    def place(self) -> str:
        """Where the reader is: what to give as `since` to go on from here."""
        return ",".join(f"{backend}:{number}" for backend, number in self._place.items())

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that are followed."""
        return tuple(self._place)

    async def next(self, seconds: float, admit: Callable[[], Awaitable[object]]) -> Sequence[Told] | End:
        """What comes next, as soon as there is anything; nothing after `seconds` without news.

        :param admit: asked after a silence, and whenever tokens were made or revoked; raises once the reader's was.
        :raises Unavailable: the database is away.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            changed = self._broadcast.changed
            if self._ctx.closing.is_set():
                return End.CLOSING
            if self._tokens != self._ctx.known_tokens.generation:
                self._tokens = self._ctx.known_tokens.generation
                await admit()
            found = self._recent()
            if not isinstance(found, End):
                found = await self._stored() or found
            if isinstance(found, End):
                return found
            if told := self._advance(found):
                return told
            if not found and not await _set_before(changed, deadline):
                await admit()
                return ()

    def _recent(self) -> Sequence[Happened] | End:
        """From memory, of the backends of which the reader is up to date."""
        found: list[Happened] = []
        for backend, place in self._place.items():
            recent = self._broadcast.recent.get(backend)
            if recent is not None and place >= recent.before:
                self._live.add(backend)
                found += recent.after(place, PAGE - len(found))
            elif backend in self._live:
                return End.OVERRUN
        return found

    async def _stored(self) -> Sequence[Happened] | End:
        """From the database, of the others."""
        behind = {backend: place for backend, place in self._place.items() if backend not in self._live}
        if not behind:
            return ()
        async with self._ctx.db.connection() as tx:
            rows = await events.after.all(tx, backends=list(behind), seqs=list(behind.values()), page_size=PAGE)
        return rows if _without_gap(rows, behind) else End.OVERRUN

    def _advance(self, found: Iterable[Happened]) -> list[Told]:
        told = []
        for event in found:
            self._place[event.backend] = event.seq
            if self._rap_id is None or event.rap_id == self._rap_id:
                told.append(Told(event, self.place))
        return told


async def follow(
    ctx: Context, principal: Principal, *, backend: str | None, rap_id: RapId | None, since: str | None
) -> Reader:
    """A reader of what happens on the caller's backends, or on one of them, or to one RAP.

    :param since: the place of an earlier reader; None: from now on. What it says of other backends is left out.
    :raises NotFound: no such backend or RAP for this caller.
    :raises Rejected: `since` is no place.
    :raises Unavailable: the database is away, or there are too many readers.
    """
    known = {} if since is None else _parse(since)
    if ctx.broadcast.readers >= MOST_READERS:
        raise Unavailable("Too many follow the events of this controller; try again.")
    slugs = principal.backends_for(Verb.READ)
    if backend is not None and backend not in slugs:
        raise NotFound(f"There is no backend {backend!r} for this token.", backend=backend)
    wanted = list(slugs) if backend is None else [backend]
    async with ctx.db.connection() as tx:
        if rap_id is not None:
            row = await raps.summary.one(tx, id=rap_id, backends=wanted)
            if row is None:
                raise NotFound(f"No RAP {rap_id}", rap_id=rap_id)
            wanted = [row.backend]
        bounds = {row.backend: row for row in await events.bounds.all(tx, backends=wanted)}
    place, forgotten = {}, False
    for slug in wanted:
        last, first = (bounds[slug].last, bounds[slug].first) if slug in bounds else (0, 1)
        place[slug] = known.get(slug, last)
        if not first - 1 <= place[slug] <= last:
            place[slug], forgotten = last, True
    return Reader(ctx, place, rap_id, forgotten=forgotten)


async def broadcast(ctx: Context) -> None:
    """Read what is new, once for all readers of this process.

    :raises Unavailable: the database is away; nothing is lost.
    """
    recent = ctx.broadcast.recent
    more = True
    while more:
        async with ctx.db.connection() as tx:
            new = [slug for slug in ctx.backends if slug not in recent]
            if new:
                heads = {row.backend: row.last for row in await events.bounds.all(tx, backends=new)}
                for slug in new:
                    ctx.broadcast.begin(slug, heads.get(slug, 0))
            seqs = [recent[slug].head for slug in recent]
            rows = await events.after.all(tx, backends=list(recent), seqs=seqs, page_size=PAGE)
        ctx.broadcast.add(rows)
        more = len(rows) >= PAGE


def _parse(since: str) -> dict[str, int]:
    fault = Rejected("since (Last-Event-ID) is no place that this API gave out", field="since")
    if len(since) > _LONGEST_PLACE:
        raise fault
    known = {}
    for part in since.split(",") if since else ():
        match = _PART.fullmatch(part)
        if match is None or int(match[2]) > _LAST:
            raise fault
        known[match[1]] = int(match[2])
    return known


def _without_gap(rows: Sequence[Happened], place: Mapping[str, int]) -> bool:
    """Whether each backend's rows go on right after its place: if not, they were forgotten while the reader read."""
    last = dict(place)
    for row in rows:
        if row.seq != last[row.backend] + 1:
            return False
        last[row.backend] = row.seq
    return True


async def _set_before(event: asyncio.Event, deadline: float) -> bool:
    try:
        async with asyncio.timeout_at(deadline):
            await event.wait()
    except TimeoutError:
        return False
    return True
