"""Errors for agents: `{"error": key, "message": sentence, ...fields}`, and a status that says what to do.

400, 409, 413: this body never can be accepted. 401: the token is wrong for this backend, or there is no such
backend; the two look the same. 404: not this agent's. 503: later, after `Retry-After` seconds.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from controller.core.errors import Conflict, DomainError, NotFound, Rejected, Unavailable
from controller.web.errors import Answer, BodyTooLarge, Unauthorized


def body(
    status: int, key: str, message: str, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> web.Response:
    """An error's answer; `fields` never hide `error` and `message`."""
    content = {"error": key, "message": message, **fields} | {"error": key, "message": message}
    return web.Response(
        status=status,
        body=orjson.dumps(content, default=str),
        content_type="application/json",
        headers=headers,
    )


def _as(status: int, **headers: str) -> Answer:
    def answer(error: DomainError) -> web.Response:
        return body(status, error.key, error.message, error.fields, headers)

    return answer


def _later(error: Unavailable) -> web.Response:
    seconds = max(1, math.ceil(error.retry_after))
    return body(503, error.key, error.message, error.fields, {"Retry-After": str(seconds)})


ANSWERS: Final[Mapping[type[DomainError], Answer]] = {
    Unauthorized: _as(401, **{"WWW-Authenticate": "Bearer"}),
    BodyTooLarge: _as(413),
    Rejected: _as(400),
    NotFound: _as(404),
    Conflict: _as(409),
    Unavailable: _later,
    DomainError: _as(400),
}
"""Class of error -> answer; the nearest class of an error decides."""


@web.middleware
async def answer_http(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Unknown paths and wrong methods, in this dialect's form."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return body(404, "not_found", "There is nothing at this path.", {})
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"This path understands {allowed} only."
        return body(405, "method_not_allowed", message, {}, {"Allow": allowed})
