"""Request bodies: read within a bound, decoded as UTF-8 JSON, and nothing that would hurt further in.

Everything that can be wrong with a body is a `MalformedBody`: the caller's fault, never a 500.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from aiohttp import web

from controller.web.errors import BodyTooLarge, MalformedBody

MAX_DEPTH: Final = 64
"""Arrays and objects inside each other; real requests need four."""

NOT_JSON: Final = "could not parse JSON from request body"

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
"""One half of a pair: JSON can spell it, but it is no character and UTF-8 cannot hold it."""


async def read(request: web.Request, limit: int | None = None) -> bytes:
    """The whole body, after any Content-Encoding is undone.

    :param limit: bytes; else the `client_max_size` of the root application, which is a setting.
    :raises BodyTooLarge: it has more than `limit` bytes; no more than that is kept in memory.
    :raises MalformedBody: its encoding or framing is broken.
    """
    limit = request.client_max_size if limit is None else limit
    too_large = BodyTooLarge(f"request body is larger than {limit} bytes")
    if (request.content_length or 0) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > limit:
                raise too_large
    except web.RequestPayloadError as error:
        raise MalformedBody("request body is cut short or its Content-Encoding is broken") from error
    return bytes(body)


def parse(raw: bytes | str) -> Any:
    """`raw` as JSON; its nesting is bounded, so that whatever walks over it cannot run out of stack.

    :raises MalformedBody: not UTF-8, not JSON, or deeper than MAX_DEPTH.
    """
    try:
        value = json.loads(raw if isinstance(raw, str) else raw.decode())
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, a number of too many digits
        raise MalformedBody(NOT_JSON) from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node) if isinstance(child, dict | list)]
        if not level:
            return value
    raise _too_deep()


def parse_unicode(raw: bytes) -> Any:
    """`raw` as JSON of which every text is one in Unicode, too.

    :raises MalformedBody: as `parse`, and for unpaired surrogates.
    """
    value = parse(raw)
    if any(map(_SURROGATE.search, _texts(value))):
        raise MalformedBody(f"{NOT_JSON}: text must not contain unpaired surrogates")
    return value


def _too_deep() -> MalformedBody:
    return MalformedBody(f"{NOT_JSON}: nested deeper than {MAX_DEPTH} levels")


def _children(node: Any) -> Iterator[Any]:
    match node:
        case dict():
            yield from node.values()
        case list():
            yield from node


def _texts(value: Any) -> Iterator[str]:
    """Every string in `value`, keys included."""
    nodes = [value]
    while nodes:
        node = nodes.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict):
            yield from node
        nodes.extend(_children(node))
