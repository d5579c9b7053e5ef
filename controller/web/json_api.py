"""The form of our own APIs: values as JSON, errors as `{"error": key, "message": sentence, ...fields}`.

Dialects of other systems have bodies and errors of their own; those of our making (agents, native) share these.
400, 409, 413: this request never can be accepted. 401: the token is wrong; for agents, it is wrong for this backend or
there is no such backend, and the two look the same. 403: the token opens the backend, but not for this. 404: not
there, or not the caller's. 503: later, after `Retry-After` seconds.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from common import convert
from controller.core.errors import Conflict, DomainError, Forbidden, NotFound, Rejected, Unavailable
from controller.web.errors import Answer, BodyTooLarge, Unauthorized, answering


def send(value: object) -> web.Response:
    """An attrs object as the body of a success."""
    return web.Response(body=convert.dumps(value), content_type="application/json")


def _error(
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


def _as_status(status: int, **headers: str) -> Answer:
    """The answer with this status, whatever the error."""

    def answer(error: DomainError) -> web.Response:
        return _error(status, error.key, error.message, error.fields, headers)

    return answer


def _later(error: Unavailable) -> web.Response:
    seconds = max(1, math.ceil(error.retry_after))
    return _error(503, error.key, error.message, error.fields, {"Retry-After": str(seconds)})


ANSWERS: Final[Mapping[type[DomainError], Answer]] = {
    Unauthorized: _as_status(401, **{"WWW-Authenticate": "Bearer"}),
    BodyTooLarge: _as_status(413),
    Rejected: _as_status(400),
    Forbidden: _as_status(403),
    NotFound: _as_status(404),
    Conflict: _as_status(409),
    Unavailable: _later,
    DomainError: _as_status(400),
}
"""Class of error -> answer; the nearest class of an error decides."""


@web.middleware
async def _answer_http(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Unknown paths and wrong methods, in the same form."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return _error(404, "not_found", "There is nothing at this path.", {})
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"This path understands {allowed} only."
        return _error(405, "method_not_allowed", message, {}, {"Allow": allowed})


MIDDLEWARES: Final = (answering(ANSWERS), _answer_http)
"""For the sub-application of such a dialect; its handlers raise, and catch nothing."""
