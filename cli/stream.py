"""Server-sent events of the native API, over lost connections and restarts of the controller, without a gap."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

import aiohttp
import orjson
from attrs import frozen

from cli.client import Client, Interrupted
from cli.errors import Problem

_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
_LARGEST: Final = 16 * 1024**2
"""Bytes of one event: a controller's are some kilobytes."""
_END: Final = b"\n\n"


@frozen(kw_only=True)
class Message:
    """One event."""

    event: str
    """Its type: see `GET /api/events`. Empty for what only tells the place."""
    data: Mapping[str, Any]
    place: str | None
    """Where to go on after it."""


async def follow(client: Client, **query: str | None) -> AsyncGenerator[Message, None]:
    """Events from now on. The first is `ready`: what is read after it is not older than what follows.

    A connection that is lost is made again, and goes on where it was.

    :param query: of `GET /api/events`.
    :raises Problem: the controller refuses, or stays away for longer than the client's patience.
    """
    place: str | None = None
    pause, deadline = _FIRST_PAUSE, client.clock.monotonic() + client.retry_for
    while True:
        reason = "the controller ended the stream"
        try:
            async with client.stream("events", place=place, **query) as content, aclosing(_messages(content)) as found:
                async for message in found:
                    place = message.place or place
                    pause, deadline = _FIRST_PAUSE, client.clock.monotonic() + client.retry_for
                    if message.event:
                        yield message
        except Interrupted as error:
            reason = str(error)
        if client.clock.monotonic() + pause > deadline:
            raise Problem(f"{reason}; gave up after trying for {client.retry_for:g} s")
        await client.clock.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _messages(content: aiohttp.StreamReader) -> AsyncGenerator[Message, None]:
    left = b""
    async for part in content.iter_any():
        *blocks, left = (left + part).split(_END)
        if len(left) > _LARGEST:
            raise Problem("the controller sends an event that has no end")
        for block in blocks:
            yield _message(block)


def _message(block: bytes) -> Message:
    fields: dict[bytes, bytes] = {}
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        fields[name] = value.removeprefix(b" ")
    try:
        data = orjson.loads(fields.get(b"data", b"{}"))
        place = fields[b"id"].decode() if b"id" in fields else None
        event = fields.get(b"event", b"").decode()
    except ValueError as error:
        raise Problem("the controller sends events that are none (check --url or RAP_URL)") from error
    if not isinstance(data, dict):
        raise Problem("the controller sends events that are none (check --url or RAP_URL)")
    return Message(event=event, data=data, place=place)
