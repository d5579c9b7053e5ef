"""Errors in the form of our own APIs: `{"error": key, "message": sentence, ...fields}`, and a status for each class.

Dialects of other systems have bodies of their own; those of our making (agents, native) start from this one.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from controller.core.errors import Conflict, DomainError, NotFound, Rejected, Unavailable
from controller.web.errors import Answer, Unauthorized


def body(
    status: int, key: str, message: str, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> web.Response:
    """An error's answer; `error` and `message` come first, and no field can hide them."""
    content = {"error": key, "message": message, **fields} | {"error": key, "message": message}
    return web.Response(
        status=status,
        body=orjson.dumps(content, default=str),
        content_type="application/json",
        headers=headers,
    )


def as_status(status: int, **headers: str) -> Answer:
    """The answer with this status, whatever the error."""

    def answer(error: DomainError) -> web.Response:
        return body(status, error.key, error.message, error.fields, headers)

    return answer


def _later(error: Unavailable) -> web.Response:
    seconds = max(1, math.ceil(error.retry_after))
    return body(503, error.key, error.message, error.fields, {"Retry-After": str(seconds)})


ANSWERS: Final[Mapping[type[DomainError], Answer]] = {
    Unauthorized: as_status(401, **{"WWW-Authenticate": "Bearer"}),
    Rejected: as_status(400),
    NotFound: as_status(404),
    Conflict: as_status(409),
    Unavailable: _later,
    DomainError: as_status(400),
}
"""Class of error -> answer; the nearest class of an error decides."""


@web.middleware
async def answer_http(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Unknown paths and wrong methods, in the same form."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return body(404, "not_found", "There is nothing at this path.", {})
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"This path understands {allowed} only."
        return body(405, "method_not_allowed", message, {}, {"Allow": allowed})
