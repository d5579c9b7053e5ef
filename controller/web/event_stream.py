"""An answer that goes on: server-sent events, as browsers' `EventSource` reads them.

Everything is written from one coroutine, and nothing is queued here: while the other side does not read, `send` waits,
and after a bounded time the connection is cut.
"""

import asyncio
from collections.abc import Iterable
from typing import Final, Self

import structlog
from aiohttp import web

WRITE_SECONDS: Final = 30.0
"""How long a reader may take none of what was sent before its connection is cut."""
AGAIN_MILLISECONDS: Final = 1000
"""How long a browser waits before it connects again."""

log = structlog.get_logger(__name__)


class Stalled(Exception):
    """The other side has not read for too long; its connection is cut."""


def message(event: str, data: bytes, *, place: str | None = None) -> bytes:
    """One message.

    :param event: its type; one line.
    :param data: one line.
    :param place: what the reader sends as `Last-Event-ID` when it comes again; one line.
    """
    id_line = b"" if place is None else b"id: " + place.encode() + b"\n"
    return b"event: " + event.encode() + b"\n" + id_line + b"data: " + data + b"\n\n"


def heartbeat(place: str) -> bytes:
    """Nothing new, which shows a dead connection. It brings the reader's place up to date, and makes no event of it."""
    return b": alive\nid: " + place.encode() + b"\n\n"


class EventStream:
    """The answer to one request; made by `open`."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",  # nginx would hold it back
            }
        )

    @classmethod
    async def open(cls, request: web.Request) -> Self:
        """Answer 200 and tell when to come again. From here on, no error can be answered any more.

        :raises ConnectionError: the other side is gone.
        """
        stream = cls(request)
        await stream.response.prepare(request)
        await stream.send([f"retry: {AGAIN_MILLISECONDS}\n\n".encode()])
        return stream

    async def send(self, messages: Iterable[bytes]) -> None:
        """Send messages; returns once there is room for more.

        :raises Stalled: the other side does not read.
        :raises ConnectionError: it is gone.
        """
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self.response.write(b"".join(messages))
        except TimeoutError as error:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise Stalled from error
